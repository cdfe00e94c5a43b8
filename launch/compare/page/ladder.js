// What was stacked, rung by rung, and the notebook of a climb.

function drawWaterfall() {
  const { rows, product, direct, page } = data.waterfall;
  const drawn = rows.filter((each) => each.to !== null);
  const mids = [...drawn.flatMap((each) => [each.from, each.to]), product, direct?.speed].filter((each) => each);
  const ends = [...drawn.flatMap((each) => [each.low, each.high]), direct?.low, direct?.high].filter((each) => each);
  const axis = speedAxis(mids, ends);
  const made = rows.map((each) => {
    const inside = [...grid(axis)];
    if (each.to === null) inside.push(at(h("i", { class: "stand" }), axis.place(each.from)));
    else {
      const [from, to] = each.to >= each.from ? [each.from, each.to] : [each.to, each.from];
      inside.push(at(h("i", { class: each.kept ? "fall kept" : "fall" }), axis.place(from), axis.place(to)));
      if (each.low) inside.push(...interval(axis, [each.to, each.low, each.high], "whisker"));
    }
    const said = [h("b", null, each.text ?? "no multiplier"), h("span", { class: "quiet" }, each.kept ? `so far ${speed(each.to)}` : each.reason)];
    const name = [h("b", null, each.page ? link(each.page, each.name) : each.name), chip(each.kept ? "kept" : each.badge, each.kept ? "good" : each.tone === "good" ? "open" : each.tone), h("span", { class: "quiet" }, each.technique)];
    return laneRow(name, inside, said, `${each.name}: ${each.text ?? each.badge}`);
  });
  if (direct) made.push(laneRow([h("b", null, page ? link(page, "the finished stack") : "the finished stack"), h("span", { class: "quiet" }, "measured against the base itself")],
    [...grid(axis), at(h("i", { class: "fall whole" }), axis.place(1), axis.place(direct.speed)), ...interval(axis, [direct.speed, direct.low, direct.high], "whisker")],
    [h("b", null, `${speed(direct.speed)} ${spread(direct.low, direct.high)}`), h("span", { class: "quiet" }, `the product is ${speed(product)}`)], `finished stack ${speed(direct.speed)}`));
  return section("waterfall", data.kind === "climb" ? "The climb" : "The ladder",
    "Each row begins where the one before has brought the stack. Filled is what was kept; the line is the interval of its own multiplier. The last row was measured in pairs of its own, and is the one to believe.",
    null, h("div", { class: "lanes-html" }, made, axisRow(axis, "times as fast as the base")));
}

function drawNotebook() {
  const pair = (name, value) => (value ? [h("dt", null, name), h("dd", null, value)] : []);
  return section("notebook", "Notebook", "What was thought, what was tried, what came of it.", null,
    h("div", { class: "cards" }, data.notebook.map((each, i) => h("article", { class: "card whole" },
      h("h3", null, h("span", { class: "rank" }, String(i + 1)), each.page ? link(each.page, each.name) : each.name, " ", chip(each.badge, each.tone)),
      h("dl", null, pair("Hypothesis", each.hypothesis), pair("Evidence", each.evidence.length ? h("ul", null, each.evidence.map((line) => h("li", null, line))) : null),
        pair("Can win", each.bound), pair("Source", each.source), pair("Change", each.change.length ? h("pre", null, each.change.join("\n")) : null), pair("Result", each.result), pair("Why", each.why))))));
}
