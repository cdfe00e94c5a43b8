// Tables that are sorted by a click, with numbers in the unit that their column's name ends in.

const HEADINGS = {
  total_ns: "total", share: "share of time", count: "calls", mean_ns: "mean", min_ns: "shortest", max_ns: "longest", dur_ns: "total", num_bytes: "bytes", num_ranks: "ranks", median_ns: "median",
  std_ns: "deviation", bus_gb_s: "bus GB/s", link_gb_s: "link GB/s", link_share: "share of the link", message_bytes: "bytes", exposed_ns: "exposed", wait_ns: "waiting for the last",
  own_ns: "own time", kernel_ns: "its kernels", num_kernels: "number of kernels", operator_ns: "in the operator", gain_ns: "gain", gain_share: "share of the step", time_ns: "on the path",
  num_late: "steps in which it was last", num_steps: "steps", mean_late_ns: "after the first, mean", num_blocks: "blocks",
  transfer_ns: "transferring", achieved_tflops: "TFLOP/s", achieved_gb_per_s: "GB/s", flops: "FLOP", window_ns: "step time",
  ...Object.fromEntries(PARTS.map((part) => [part.key, part.label])),
};
const heading = (name) => HEADINGS[name] ?? name.replace(/_ns$/, "").replace(/_gb(_per)?_s$/, " GB/s").replaceAll("_", " ");

/** How a column is written: times share one unit, so that their digits can be compared. */
function writer(frame, name) {
  const values = frame.values(name);
  if (name.endsWith("_ns") || name === "dur") {
    let most = 0;
    for (const each of values) if (Math.abs(each) > most) most = Math.abs(each);
    const [unit, size] = unitOf(most);
    return { unit, write: (value) => (value === null ? "–" : size === 1 ? plain(value) : (value / size).toFixed(3)) };
  }
  if (/(^|_)(share|fraction|utilization|efficiency)$/.test(name)) return { write: share, bar: true };
  if (/(^|_)bytes$/.test(name)) return { write: bytes };
  if (name === "flops") return { write: (value) => (value === null ? "–" : value >= 1e4 ? value.toExponential(2) : plain(value)) };
  if (/^(rank|step|device|stream)$/.test(name)) return { write: (value) => (value === null ? "–" : String(value)) };
  return { write: plain };
}

function sortedTable(frame, { order, by, first = 25, search = false, hidden = [] }) {
  const names = [...order.filter((name) => frame.has(name)), ...[...frame.columns.keys()].filter((name) => !order.includes(name) && !hidden.includes(name))];
  const writers = new Map(names.filter((name) => !frame.isText(name)).map((name) => [name, writer(frame, name)]));
  const isName = (name) => ["name", "kernel", "kernels", "operator"].includes(name);
  let sort = { name: by && frame.has(by) ? by : null, down: true };
  let limit = first;
  let wanted = "";
  const body = h("tbody");
  const more = h("p", { class: "more" });

  const rows = () => {
    let made = Array.from({ length: frame.length }, (_, i) => i);
    if (wanted) made = made.filter((row) => names.some((name) => frame.isText(name) && frame.at(name, row)?.toLowerCase().includes(wanted)));
    if (!sort.name) return made;
    const [values, words] = [frame.values(sort.name), frame.isText(sort.name) ? frame.words(sort.name) : null];
    const sign = sort.down ? -1 : 1;
    const compare = words
      ? (a, b) => sign * (words[values[a]] ?? "").localeCompare(words[values[b]] ?? "")
      : (a, b) => (Number.isNaN(values[a]) - Number.isNaN(values[b])) || sign * (values[a] - values[b]);
    return made.sort((a, b) => compare(a, b) || a - b);
  };
  const cell = (name, row) => {
    const value = frame.at(name, row);
    const write = writers.get(name);
    if (isName(name)) {
      const text = value ?? "–";
      const shown = name === "kernels" ? text : short(text); // those are a list of short names already
      const button = h("button", { type: "button", title: text, "aria-expanded": "false", on: { click: () => {
        const open = button.parentElement.classList.toggle("open");
        button.textContent = open ? text : shown;
        button.setAttribute("aria-expanded", String(open));
      } } }, shown);
      return h("td", { class: "text name" }, button);
    }
    if (!write) return h("td", { class: "text" }, value === null ? "–" : COLOUR_OF_KIND[value] ? [h("span", { class: `swatch c-${COLOUR_OF_KIND[value]}` }), ` ${value}`] : value);
    if (write.bar && value !== null) return h("td", null, h("span", { class: "share" }, h("span", { "aria-hidden": "true" }, bar(value)), h("b", null, write.write(value))));
    return h("td", null, write.write(value));
  };
  const fill = () => {
    const found = rows();
    body.replaceChildren(...found.slice(0, limit).map((row) => h("tr", null, names.map((name) => cell(name, row)))));
    const rest = found.length - limit;
    more.replaceChildren(rest > 0
      ? h("button", { type: "button", on: { click: () => { limit = found.length; fill(); } } }, `Show ${grouped.format(rest)} more`)
      : found.length ? "" : `Nothing is called “${wanted}”.`);
  };
  const heads = names.map((name) => {
    const unit = writers.get(name)?.unit;
    const head = h("th", { scope: "col", class: writers.has(name) ? null : "text" }, h("button", { type: "button", on: { click: () => {
      sort = { name, down: sort.name === name ? !sort.down : writers.has(name) };
      mark();
      fill();
    } } }, unit ? `${heading(name)}, ${unit}` : heading(name)));
    return [name, head];
  });
  const mark = () => heads.forEach(([name, head]) =>
    (name === sort.name ? head.setAttribute("aria-sort", sort.down ? "descending" : "ascending") : head.removeAttribute("aria-sort")));
  mark();
  fill();
  const box = search ? h("input", { type: "search", name: "filter", placeholder: "Filter", "aria-label": "Filter the table", on: { input: (event) => { wanted = event.target.value.toLowerCase(); limit = first; fill(); } } }) : null;
  return { node: [h("div", { class: "scroll" }, h("table", null, h("thead", null, h("tr", null, heads.map(([, head]) => head))), body)), more], box };
}

/** The numbers behind a chart, made when somebody opens them. */
function asTable(frame, title) {
  const made = h("details", null, h("summary", null, title));
  made.addEventListener("toggle", () => {
    if (made.open && made.childElementCount === 1) made.append(...sortedTable(frame, { order: [], by: null, first: 200 }).node);
  });
  return made;
}

function tableSection(id, title, lead, order, by) {
  const frame = frames[id];
  if (!frame) return section(id, title, null, null, h("p", { class: "missing" }, data.missing[id]));
  const { node, box } = sortedTable(frame, { order, by, search: frame.length > 8 });
  return section(id, title, lead, box ? [box] : null, ...node);
}

function drawKernels() {
  return tableSection("kernels", "Kernels", "What the device ran, by name. Times are sums over everything that was looked at; click a name to read all of it.",
    ["name", "kind", "share", "total_ns", "count", "mean_ns", "median_ns", "min_ns", "max_ns"], "total_ns");
}
function drawCollectives() {
  return tableSection("collectives", "Collectives",
    "Waiting for the last rank is time in which nothing is sent; what is exposed is what the step paid. Bus bandwidth is what the links carried.",
    ["group", "type", "size", "count", "message_bytes", "total_ns", "bus_gb_s", "link_gb_s", "exposed_ns", "wait_ns"], "exposed_ns");
}
function drawSequences() {
  return tableSection("sequences", "Sequences of kernels", "Kernels that an operator starts one after the other, again and again: candidates for one fused kernel.",
    ["operator", "kernels", "num_kernels", "count", "kernel_ns", "operator_ns"], "count");
}
function drawOperators() {
  return tableSection("operators", "Operators", "Operators of the host by name: their own time, without operators inside, and the kernels that they started themselves.",
    ["name", "own_ns", "total_ns", "count", "num_kernels", "kernel_ns"], "own_ns");
}
function drawCounters() {
  return tableSection("counters", "Hardware counters", "What was counted in each range, and the operator that launched it.", ["name", "operator", "top_operator", "dur_ns", "flop"], "dur_ns");
}
