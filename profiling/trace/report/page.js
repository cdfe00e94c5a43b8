// The page: its sections in order.

function drawAdvice() {
  const { advice } = data;
  if (advice === null) return section("advice", "Advice", null, null, h("p", { class: "missing" }, data.missing.advice));
  if (!advice.length) return section("advice", "Advice", null, null, h("p", null, "Nothing to advise: no finding has evidence in this trace."));
  const most = Math.max(...advice.map((each) => each.wins_at_most_ns ?? 0));
  const lines = (texts) => (texts.length === 1 ? texts[0] : h("ul", null, texts.map((each) => h("li", null, each))));
  const pair = (name, value) => (value ? [h("dt", null, name), h("dd", null, value)] : []);
  return section("advice", "Advice", "By what it can win at most. Each finding says where it was seen, so that it can be doubted.", null,
    h("div", { class: "cards" }, advice.map((each, i) => h("article", { class: "card" },
      h("h3", null, h("span", { class: "rank" }, String(i + 1)), each.title),
      each.wins_at_most_ns === null ? h("div", { class: "win quiet" }, "gain not known") : h("div", { class: "win" },
        h("span", { class: "quiet" }, "wins at most"), h("b", null, time(each.wins_at_most_ns)),
        h("div", { class: "track" }, bar(most ? each.wins_at_most_ns / most : 0)),
        stepShare(each.wins_at_most_ns)),
      h("div", null, h("dl", null,
        pair("Evidence", each.evidence.length ? lines(each.evidence) : null), pair("Likely cause", each.cause),
        pair("Remedy", each.remedy ? h("pre", null, each.remedy) : null), pair("Measure next", each.measure_next)),
      each.assumptions.length ? h("p", { class: "assumptions" }, `Assumes: ${each.assumptions.join("; ")}`) : null)))));
}

function stepShare(ns) {
  if (!steps) return null;
  const mean = total(steps, "window_ns", steps.values("window_ns").map((_, i) => i)) / steps.length;
  return h("span", { class: "quiet" }, `${share(ns / mean)} of a step`);
}

function drawNotes() {
  const children = data.notes.length ? h("ul", { class: "notes" }, data.notes.map((each) => h("li", null, each))) : h("p", { class: "missing" }, "Nothing was wrong with the files.");
  return section("notes", "Notes", null, null, children);
}

function main() {
  const content = document.getElementById("content");
  content.append(h("h1", null, data.title), data.subtitle ? h("p", { class: "subtitle" }, data.subtitle) : "");
  const draws = [steps ? drawSummary : null, drawAdvice, drawSteps, drawTimeline, drawPath, drawHeatMap, drawMemory, drawKernels, drawSequences, drawOperators, drawCollectives, drawRoofline,
    frames.counters ? drawCounters : null, drawNotes];
  const sections = draws.filter(Boolean).map((draw) => draw());
  content.append(...sections);
  watchSections(sections);
  watchScheme();
  document.documentElement.dataset.ready = "yes";
}
main();
