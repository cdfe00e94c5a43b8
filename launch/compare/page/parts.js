// What a step of each arm is made of, side by side.

const COLOUR_OF_PART = { "matrix products": "compute", attention: "critical", pointwise: "python", optimizer: "launch", communication: "exposed", copies: "memory", idle: "idle", launch: "operator", other: "annotation" };
const SAID_OF_PART = { communication: "exposed communication" };
const partColour = (name) => COLOUR_OF_PART[name] ?? "other";

function drawParts() {
  const rows = data.breakdown;
  if (!rows.length) return section("why", "Why", null, null, h("p", { class: "missing" }, "No arm was profiled, so that nothing is known of where its time goes; without --no-profile it is."));
  const longest = Math.max(...rows.map((each) => each.step_ms));
  const order = [...new Set(rows.flatMap((each) => each.parts.map(([name]) => name)))].sort((a, b) => Number(a === "idle") - Number(b === "idle"));
  const total = (name) => rows.map((each) => each.parts.find(([part]) => part === name)?.[1] ?? null);
  return section("why", "Why", `${data.kind === "climb" ? "The step as it was profiled on the way." : "One profiled window of each arm."} The parts add up to the step; exchanges and copies count only where nothing computes meanwhile. The profiler itself costs time, so compare the bars with each other.`, null,
    h("div", { class: "parts" }, rows.map((each) => h("div", { class: "part-row" },
      h("div", { class: "who" }, h("b", null, each.report ? link(each.report, each.label) : each.label), each.kept === false ? chip("not kept", "open") : null),
      (() => {
        const bars = h("div", { class: "stack", role: "img", "aria-label": `${each.label}: ${each.step_ms.toFixed(2)} ms` },
          order.map((name) => [name, each.parts.find(([part]) => part === name)?.[1] ?? 0]).filter(([, ms]) => ms > 0).map(([name, ms]) => {
            const piece = bar(ms / each.step_ms, partColour(name));
            piece.addEventListener("pointermove", (event) => showTip(event, SAID_OF_PART[name] ?? name, `${ms.toFixed(3)} ms, ${share(ms / each.step_ms)} of the step`));
            piece.addEventListener("pointerleave", hideTip);
            return piece;
          }));
        bars.style.width = wide(each.step_ms / longest);
        return h("div", null, bars, each.sentence ? h("p", { class: "quiet" }, `${each.sentence}${each.doubt}.`) : null);
      })(),
      h("div", { class: "said" }, h("b", null, `${each.step_ms.toPrecision(4)} ms`), each.kernels === null ? null : h("span", { class: "quiet" }, `${plain(Math.round(each.kernels))} kernels or operators`))))),
    legend(order.map((name) => [partColour(name), SAID_OF_PART[name] ?? name])),
    h("details", null, h("summary", null, "Parts as a table, in ms"), simpleTable(["part", ...rows.map((each) => each.label)],
      [...order.map((name) => [SAID_OF_PART[name] ?? name, ...total(name).map((ms) => (ms === null ? null : ms.toFixed(3)))]), ["step", ...rows.map((each) => each.step_ms.toFixed(3))]])));
}
