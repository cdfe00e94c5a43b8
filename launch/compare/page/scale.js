// What the charts of a comparison share: colours of arms, the axis of speeds, rows with a mark on that axis.

const armNames = [...new Set(["baseline", ...data.pairs.map((each) => each.arm), ...data.segments.map((each) => each.arm),
  ...(data.losses?.curves ?? []).map((each) => each.arm)])];
const colourOfArm = (name) => `arm-${name === "baseline" ? 0 : 1 + ((armNames.indexOf(name) - 1) % 8 + 8) % 8}`;
const armLegend = (names) => legend(names.map((name) => [colourOfArm(name), name]));

const speed = (value) => (value === null || value === undefined ? "–" : `${value.toFixed(3)}x`);
const spread = (low, high) => `[${low === null ? "–" : low.toFixed(3)}, ${high === null ? "–" : high.toFixed(3)}]`;
const percent = (value, places = 2) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(100 * value).toFixed(places)} %`;
const chip = (text, tone) => h("span", { class: `chip t-${tone}` }, text);
const link = (parts, text) => h("a", { href: `./${parts.map(encodeURIComponent).join("/")}` }, text);

/** Round numbers between two, `count` of them or so, for an axis that need not begin at zero. */
function between(low, high, count) {
  const rough = (high - low) / count;
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((each) => each * power >= rough) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-9); i++) found.push(i * step);
  return found;
}

const MOST_SPREAD = 3;
/**
 * A logarithmic axis of speeds on which 1 lies. `mids` are always on it; intervals may reach beyond its ends, for one
 * that says nothing must not hide what the others say.
 */
function speedAxis(mids, ends) {
  const [least, most] = [Math.min(1, ...mids), Math.max(1, ...mids)];
  let low = Math.log(Math.max(Math.min(least, ...ends), least / MOST_SPREAD));
  let high = Math.log(Math.min(Math.max(most, ...ends), most * MOST_SPREAD));
  const pad = Math.max(0.003, 0.05 * (high - low));
  [low, high] = [low - pad, high + pad];
  const place = (value) => (Math.log(value) - low) / (high - low);
  const [from, to] = [Math.exp(low), Math.exp(high)];
  const powers = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000];
  const marks = to / from < 4 ? between(from, to, 6) : powers.filter((each) => each >= from && each <= to);
  return { place, from, to, marks: marks.length > 1 ? marks : [...new Set([1, ...marks])] };
}
const tickText = (value) => `${+value.toPrecision(4)}x`;

function at(node, from, to) {
  node.style.left = `${(100 * Math.max(0, Math.min(1, from))).toFixed(3)}%`;
  if (to !== undefined) node.style.width = `${(100 * Math.max(0, Math.min(1, to) - Math.max(0, Math.min(1, from)))).toFixed(3)}%`;
  return node;
}

/** The lines of the axis behind a row; the one at 1 is stronger. */
function grid(axis) {
  return axis.marks.map((value) => at(h("i", { class: Math.abs(value - 1) < 1e-9 ? "tick one" : "tick" }), axis.place(value)))
    .concat(axis.marks.some((value) => Math.abs(value - 1) < 1e-9) ? [] : [at(h("i", { class: "tick one" }), axis.place(1))]);
}

/** An interval with its middle; ends beyond the axis are drawn open. */
function interval(axis, [mid, low, high], kind) {
  const bar = at(h("i", { class: `reach ${kind}` }), axis.place(low), axis.place(high));
  if (axis.place(low) < 0) bar.classList.add("open-left");
  if (axis.place(high) > 1) bar.classList.add("open-right");
  return [bar, at(h("i", { class: `mid ${kind}` }), axis.place(mid))];
}

function laneRow(who, inside, said, label) {
  return h("div", { class: "lane-row" }, h("div", { class: "who" }, who),
    h("div", { class: "lane", role: "img", "aria-label": label }, inside), h("div", { class: "said" }, said));
}
function axisRow(axis, title) {
  const labels = axis.marks.map((value) => at(h("span", null, tickText(value)), axis.place(value)));
  return h("div", { class: "lane-row axis", "aria-hidden": "true" }, h("div", { class: "who quiet" }, title), h("div", { class: "lane" }, labels), h("div", { class: "said" }));
}

/** A chart by rows and columns of pixels: margins, horizontal lines with labels, and what is under the pointer. */
const MARGIN = { left: 62, right: 14, top: 10, bottom: 30 };
function plot(width, height) {
  return { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: height - MARGIN.bottom };
}
function ruled(ctx, area, marks, y, text) {
  const ink = colours();
  ctx.textAlign = "right";
  for (const value of marks) {
    const row = Math.round(y(value)) + 0.5;
    if (row < area.top - 1 || row > area.bottom + 1) continue;
    ctx.fillStyle = ink.line;
    ctx.fillRect(area.left, row - 0.5, area.right - area.left, 1);
    ctx.fillStyle = ink.muted;
    ctx.fillText(text(value), area.left - 8, row);
  }
}
function along(ctx, area, marks, x, text, title) {
  const ink = colours();
  ctx.fillStyle = ink.muted;
  ctx.textAlign = "center";
  for (const value of marks) ctx.fillText(text(value), x(value), area.bottom + 11);
  ctx.fillStyle = ink.faint;
  ctx.textAlign = "left";
  ctx.fillText(title, area.left, area.bottom + 24);
}
function line(ctx, points, colour, width = 1.75, dash = []) {
  ctx.strokeStyle = colour;
  ctx.lineWidth = width;
  ctx.lineJoin = "round";
  ctx.setLineDash(dash);
  ctx.beginPath();
  points.forEach(([x, y], i) => (i ? ctx.lineTo(x, y) : ctx.moveTo(x, y)));
  ctx.stroke();
  ctx.setLineDash([]);
}
function within(ctx, area, draw) {
  ctx.save();
  ctx.beginPath();
  ctx.rect(area.left, area.top - 4, area.right - area.left + 4, area.bottom - area.top + 8);
  ctx.clip();
  draw();
  ctx.restore();
}
/** Lines of a tip for the place that is pointed at; the arrow keys go through the places too. */
function readable(surface, places, nearest, say) {
  const { canvas } = surface;
  const spoken = h("p", { class: "spoken", "aria-live": "polite" });
  let chosen = -1;
  canvas.addEventListener("pointermove", (event) => {
    const i = nearest(event.offsetX, event.offsetY);
    if (i < 0) hideTip();
    else showTip(event, ...say(i));
  });
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("keydown", (event) => {
    const to = { ArrowRight: Math.min(places() - 1, chosen + 1), ArrowLeft: Math.max(0, chosen - 1), Home: 0, End: places() - 1 }[event.key];
    if (to === undefined || to < 0) return;
    event.preventDefault();
    chosen = to;
    spoken.textContent = say(to).join("; ");
  });
  return spoken;
}
