// What stands behind the figures: sameness, failures, recipes, the machine, the commands.

const scientific = (value) => (value === null ? "–" : value === 0 ? "0" : value >= 0.001 && value < 1000 ? String(+value.toPrecision(3)) : value.toExponential(1));

function drawSameness() {
  if (!data.sameness.length) return section("sameness", "Sameness", null, null, h("p", { class: "missing" }, "Nothing was compared."));
  return section("sameness", "Sameness", "Whether each arm is still the same training, held against what its changes promise. Without that no multiplier is claimed.", null,
    h("div", { class: "cards" }, data.sameness.map((each) => {
      const [word, tone] = each.passed ? [`${each.tier}: passed`, "good"] : each.checked ? [`${each.tier}: failed`, "bad"] : ["not checked", "open"];
      return h("article", { class: "card whole" }, h("h3", null, each.arm, " ", chip(word, tone)), h("p", null, each.sentence),
        each.claims.length ? h("p", { class: "quiet" }, `Promised: ${each.claims.map(([key, may]) => `${key} may change ${may}`).join("; ")}.`) : null,
        each.checks.length ? h("details", { open: !each.passed }, h("summary", null, `${each.checks.length} checks`), simpleTable(["what", "found", "allowed", "passed"],
          each.checks.map((one) => [one.what, scientific(one.found), scientific(one.allowed), one.passed ? "yes" : "no"]), (r) => (each.checks[r].passed ? "" : "off"))) : null,
        each.biases.length ? h("details", { open: !each.passed }, h("summary", null, `${each.biases.length} tests of bias over ${each.biases[0].num_seeds} seeds`), simpleTable(["of", "bias, %", "± %", "allowed ± %"],
          each.biases.map((one) => [one.what, (100 * one.mean).toFixed(4), (100 * one.reach).toFixed(4), (100 * one.margin).toFixed(4)]))) : null);
    })));
}

function drawFailures() {
  const rows = data.failures;
  const children = rows.length
    ? simpleTable(["arm", "what", "kind", "reason", "what it printed"], rows.map((each) => [each.arm, each.what, each.kind, each.reason, each.output]))
    : h("p", { class: "missing" }, "No segment failed.");
  return section("failures", "Failures", rows.length ? "A failure is a result: it costs its pair, and the second one costs the arm its place." : null, null, children);
}

function drawRecipes() {
  const { names, rows, lines, texts } = data.recipes;
  const off = (r, i) => (i > 1 && rows[r][i] !== rows[r][1] ? "off" : "");
  return section("recipes", "Recipes", rows.length ? "The keys in which arms differ; all others are the same." : null, null,
    rows.length ? simpleTable(["key", ...names], rows, off) : lines.length ? h("ul", { class: "notes" }, lines.map((each) => h("li", null, each))) : h("p", { class: "missing" }, "The recipes are not there."),
    texts.map(([name, text]) => h("details", null, h("summary", null, `The whole recipe of ${name}`), h("pre", { class: "code" }, text))));
}

function drawEnvironment() {
  return section("environment", "Environment", null, null,
    h("dl", { class: "facts" }, data.environment.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value)))));
}

function drawReproduce() {
  return section("reproduce", "Reproduce", null, null, h("dl", { class: "commands" },
    data.reproduce.map(([what, command]) => h("div", null, h("dt", null, what), h("dd", null, h("pre", { class: "code" }, command))))));
}

function drawNotes() {
  return section("notes", "Notes", null, null, h("ul", { class: "notes" }, data.notes.map((each) => h("li", null, each))));
}
