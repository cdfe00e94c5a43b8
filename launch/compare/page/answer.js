// The answer, the interval of each arm, and the table.

function drawAnswer() {
  const { tone, headline, lines, figures } = data.answer;
  return h("section", { id: "answer", class: `t-${tone}`, "aria-labelledby": "answer-title" },
    h("h2", { id: "answer-title", class: "small" }, "Answer"),
    h("p", { class: "headline" }, headline),
    figures.length ? h("dl", { class: "figures" }, figures.map((each) => h("div", null, h("dt", null, each.label),
      h("dd", null, each.value, each.note ? h("small", null, ` ${each.note}`) : null)))) : null,
    h("ul", { class: "verdicts" }, lines.map((each) => h("li", null,
      h("span", { class: "arm" }, each.arm), chip(each.badge, each.tone), h("span", { class: "text" }, each.text),
      each.changes.length ? h("span", { class: "changes" }, each.changes.slice(0, 4).join("; "), each.changes.length > 4 ? `; and ${each.changes.length - 4} more` : "") : null))));
}

/** Rows of {name, mark: [mid, low, high] | null, floor, text, badge, tone, pairs, why_not, twin, interaction}. */
function forestRows(rows) {
  const marks = rows.flatMap((each) => [each.mark, each.twin]).filter(Boolean);
  if (!marks.length) return rows.map((each) => h("p", { class: "why-not" }, h("b", null, each.name), ` ${each.why_not ?? each.text}`));
  const axis = speedAxis(marks.map(([mid]) => mid), marks.flatMap(([, low, high]) => [low, high]));
  return [...rows.map((each) => {
    const floor = each.floor && each.mark ? at(h("i", { class: "floor" }), axis.place(1 / (1 + each.floor)), axis.place(1 + each.floor)) : null;
    const inside = [floor, ...grid(axis), ...(each.twin ? interval(axis, each.twin, "twin") : []), ...(each.mark ? interval(axis, each.mark, `k-${each.tone}`) : [])].filter(Boolean);
    const said = [h("b", null, each.text), h("span", { class: "quiet" }, each.interaction ? `${each.interaction} of what it won when added` : each.pairs ? `${each.pairs} pairs` : "")];
    return laneRow([h("b", null, each.name), chip(each.interacts ? `${each.badge}, interacts` : each.badge, each.tone)], inside, each.mark ? said : h("span", { class: "quiet why" }, each.why_not ?? each.text), `${each.name}: ${each.text}`);
  }), axisRow(axis, "times as fast")];
}

function drawForest() {
  const { rows } = data.forest;
  const lead = data.kind === "grid"
    ? "Each combination against the base. Right of the line at 1 it is faster."
    : "Each arm against the baseline, with the interval that holds the truth in 95 of 100 comparisons. Right of the line at 1 it is faster; what lies in the grey band differs by no more than equal arms do here.";
  return section("intervals", "Intervals", lead, null, h("div", { class: "lanes-html" }, forestRows(rows)));
}

function drawLeftOut() {
  const twins = data.left_out.rows.some((each) => each.twin);
  return section("left-out", "Without one", "How many times faster the finished stack is with each part than without it. A part that wins little here is done by another one too.",
    null, h("div", { class: "lanes-html" }, forestRows(data.left_out.rows)),
    twins ? legend([["good", "in the finished stack"], ["faint", "when it was added"]]) : null);
}

const isNumber = (text) => text === null || /^[\s\d.,x%[\]–−-]+$/.test(text);
function simpleTable(heads, rows, mark) {
  const texts = heads.map((_, i) => !rows.every((row) => isNumber(row[i])));
  return h("div", { class: "scroll" }, h("table", null,
    h("thead", null, h("tr", null, heads.map((head, i) => h("th", { scope: "col", class: texts[i] ? "text" : null }, head)))),
    h("tbody", null, rows.map((row, r) => h("tr", null, row.map((cell, i) =>
      h("td", { class: [texts[i] ? "text" : "", mark?.(r, i) ?? ""].join(" ").trim() || null }, cell ?? "–")))))));
}
function drawTable() {
  return section("table", "Figures", "Medians over the segments of each arm. A multiplier stands only beside a tier of sameness that was passed.", null, simpleTable(data.table.heads, data.table.rows));
}
