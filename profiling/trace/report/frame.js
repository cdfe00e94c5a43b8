// What is around the sections of a page: the scheme of colours, and the list of sections at the top.

function applyScheme(chosen) {
  if (chosen === "auto") delete document.documentElement.dataset.scheme;
  else document.documentElement.dataset.scheme = chosen;
  redraw();
}
function watchScheme() {
  const choices = ["auto", "light", "dark"];
  const button = document.getElementById("scheme");
  let chosen = "auto";
  button.addEventListener("click", () => {
    chosen = choices[(choices.indexOf(chosen) + 1) % choices.length];
    button.textContent = chosen[0].toUpperCase() + chosen.slice(1);
    applyScheme(chosen);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  // Paper is white: canvases have to be drawn for it, style sheets alone would not.
  addEventListener("beforeprint", () => applyScheme("light"));
  addEventListener("afterprint", () => applyScheme(chosen));
}

function watchSections(sections) {
  const links = new Map(sections.map((each) => [each, h("a", { href: `#${each.id}` }, each.querySelector("h2").textContent)]));
  document.getElementById("nav").append(...links.values());
  const visible = new Set();
  const watcher = new IntersectionObserver((changes) => {
    for (const change of changes) visible[change.isIntersecting ? "add" : "delete"](change.target);
    const first = sections.find((each) => visible.has(each));
    for (const [each, link] of links) {
      if (each === first) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }, { rootMargin: "-60px 0px -40% 0px" });
  for (const each of sections) watcher.observe(each);
}
