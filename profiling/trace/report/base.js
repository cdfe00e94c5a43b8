// What every part of the page needs: tables out of the payload, elements, numbers with units, colours, canvases.

const ELEMENTS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i4: Int32Array, f8: Float64Array };

function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

/** A table by columns. A column of texts is codes into `words`, of which the first is "none". */
class Frame {
  constructor(packed) {
    this.length = packed.n;
    this.columns = new Map();
    for (const [name, { t, d, w }] of Object.entries(packed.c)) {
      this.columns.set(name, { values: new ELEMENTS[t](bytesOf(d).buffer), words: w ? [null, ...w] : null });
    }
  }
  has(name) { return this.columns.has(name); }
  isText(name) { return this.columns.get(name).words !== null; }
  /** The typed array: numbers, or codes of texts. */
  values(name) { return this.columns.get(name)?.values; }
  words(name) { return this.columns.get(name)?.words ?? [null]; }
  at(name, row) {
    const column = this.columns.get(name);
    if (!column) return null;
    const value = column.values[row];
    return column.words ? column.words[value] : Number.isNaN(value) ? null : value;
  }
}

/** The parts of a step, which add up to it, in the order in which they are stacked. */
const PARTS = [
  { key: "compute_ns", label: "compute", colour: "compute" },
  { key: "overlapped_communication_ns", label: "compute over communication", colour: "overlapped" },
  { key: "exposed_communication_ns", label: "exposed communication", colour: "exposed" },
  { key: "copy_ns", label: "copies", colour: "memory" },
  { key: "idle_ns", label: "idle", colour: "idle" },
];
const COLOUR_OF_KIND = {
  compute: "compute", communication: "exposed", memory: "memory", sync: "sync", launch: "launch", operator: "operator",
  annotation: "annotation", "device annotation": "annotation", python: "python", critical: "critical",
};

function h(tag, options, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(options ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const wide = (share) => `${(100 * Math.max(0, Math.min(1, share || 0))).toFixed(3)}%`;

function bar(share, colour) {
  const part = h("i", { class: colour ? `c-${colour}` : null });
  part.style.width = wide(share);
  return part;
}

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const UNITS = [["s", 1e9], ["ms", 1e6], ["µs", 1e3], ["ns", 1]];

function digits(value) {
  const size = Math.abs(value);
  return value.toFixed(size >= 100 || size === 0 ? 1 : size >= 10 ? 2 : 3);
}
function unitOf(ns) { return UNITS.find(([, size]) => Math.abs(ns) >= size) ?? UNITS[3]; }
function time(ns) {
  if (ns === null || ns === undefined || Number.isNaN(ns)) return "–";
  if (ns === 0) return "0";
  const [unit, size] = unitOf(ns);
  return `${size === 1 ? ns.toFixed(0) : digits(ns / size)} ${unit}`;
}
function share(value) { return value === null || Number.isNaN(value) ? "–" : `${(100 * value).toFixed(1)} %`; }
function plain(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (Number.isInteger(value)) return grouped.format(value);
  const size = Math.abs(value);
  return size >= 1000 ? grouped.format(value) : size >= 0.01 ? String(+value.toPrecision(4)) : value.toExponential(2);
}
function bytes(value) {
  if (value === null || Number.isNaN(value)) return "–";
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (Math.abs(value) >= size) return `${digits(value / size)} ${unit}`;
  }
  return `${plain(value)} B`;
}

/** Numbers 0, step, 2 step, ... up to `most`, about `count` of them. */
function ticks(most, count) {
  if (!(most > 0)) return [0];
  const rough = most / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((each) => each * power >= rough) * power;
  const found = [];
  for (let i = 0; i * step <= most * (1 + 1e-9); i++) found.push(i * step);
  return found;
}

/** A name as a person says it: without return type, namespaces, template arguments and parameters. */
const shortened = new Map();
function short(name) {
  let made = shortened.get(name);
  if (made === undefined) {
    made = name.replace(/^void /, "").replaceAll("(anonymous namespace)::", "");
    const cut = made.search(/[<(]/);
    const isCode = made.includes("::") && !made.startsWith(prefixes.span);
    if (isCode && cut > 0) made = made.slice(0, cut);
    if (isCode) made = made.replace(/^(at::native::|at::|c10::)+/, "");
    else if (made.startsWith(prefixes.span)) made = made.slice(prefixes.span.length);
    if (isCode && /^(vectorized|unrolled)?_?elementwise_kernel/.test(made)) {
      const functor = name.match(/(\w*[Ff]unctor\w*|\w+_kernel_cuda|\w+_kernel_impl)/);
      if (functor) made = `${made} ${functor[1]}`;
    }
    shortened.set(name, made || name);
  }
  return made || name;
}

// Colours come from the style sheet, so that the scheme is decided in one place.
let scheme = null;
function colours() {
  if (!scheme) {
    const style = getComputedStyle(document.documentElement);
    scheme = new Proxy({}, {
      get: (known, name) => (known[name] ??= style.getPropertyValue(`--${String(name)}`).trim() || "#888888"),
    });
  }
  return scheme;
}
function mixed(a, b, part) {
  const read = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const [from, to] = [read(a), read(b)];
  return `rgb(${from.map((each, i) => Math.round(each + (to[i] - each) * part)).join(" ")})`;
}
/** Black or white, whichever is read better on a colour. */
function inkOn(colour) {
  const [r, g, b] = [1, 3, 5].map((at) => (parseInt(colour.slice(at, at + 2), 16) / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.25 ? "#101317" : "#ffffff";
}

/** A canvas that knows its size in CSS pixels and is drawn again when size, scheme or print ask for it. */
const surfaces = [];
class Surface {
  constructor(height, label, draw) {
    this.canvas = h("canvas", { tabindex: "0", role: "img", "aria-label": label });
    this.height = height;
    this.paint = draw;
    this.waiting = false;
    surfaces.push(this);
    new ResizeObserver(() => this.ask()).observe(this.canvas);
  }
  ask() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.draw(); });
  }
  draw() {
    const width = this.canvas.clientWidth;
    if (!width) return;
    const height = typeof this.height === "function" ? this.height() : this.height;
    const ratio = Math.max(1, window.devicePixelRatio || 1);
    const [w, t] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== w || this.canvas.height !== t) {
      this.canvas.width = w;
      this.canvas.height = t;
      this.canvas.style.height = `${height}px`;
    }
    const ctx = this.canvas.getContext("2d");
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, width, height);
    ctx.font = '11px system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif';
    ctx.textBaseline = "middle";
    this.paint(ctx, width, height);
  }
}
function redraw() {
  scheme = null;
  for (const each of surfaces) each.draw();
}

const tip = document.getElementById("tip");
function showTip(event, ...lines) {
  tip.replaceChildren(...lines.map((line, i) => h(i ? "div" : "b", { class: i ? "quiet" : null }, line)));
  tip.hidden = false;
  const { offsetWidth: w, offsetHeight: t } = tip;
  const x = event.clientX + 14 + w > innerWidth ? event.clientX - w - 12 : event.clientX + 14;
  const y = event.clientY + 16 + t > innerHeight ? event.clientY - t - 12 : event.clientY + 16;
  tip.style.left = `${Math.max(4, x)}px`;
  tip.style.top = `${Math.max(4, y)}px`;
}
function hideTip() { tip.hidden = true; }

function legend(items) {
  return h("ul", { class: "legend" }, items.map(([colour, label, value]) =>
    h("li", null, h("span", { class: `swatch c-${colour}` }), h("span", null, label),
      value ? h("span", { class: "number quiet" }, value) : null)));
}

/** A part of the page: a headed section, or in it the sentence that says why it is empty. */
function section(id, title, lead, tools, ...children) {
  return h("section", { id, "aria-labelledby": `${id}-title` },
    h("header", null, h("h2", { id: `${id}-title` }, title), tools?.length ? h("div", { class: "tools" }, tools) : null),
    lead ? h("p", { class: "lead" }, lead) : null, ...children);
}

const data = JSON.parse(document.getElementById("data").textContent);
const prefixes = data.prefixes;
const frames = {};
for (const [name, packed] of Object.entries(data.frames)) frames[name] = new Frame(packed);
