// The steps: where the time goes on the whole, a column for each step, and the phases of the one that is looked at.

const steps = frames.steps;
const listeners = [];
/** What is looked at everywhere: a device of a rank, and the place of a step among its steps; -1 for all. */
const view = { device: 0, at: -1 };
function look(change) {
  Object.assign(view, change);
  for (const each of listeners) each();
}

/** Devices of ranks with the rows of their steps, in order. */
const devices = (() => {
  if (!steps) return [];
  const found = new Map();
  for (let row = 0; row < steps.length; row++) {
    const [rank, device] = [steps.at("rank", row), steps.at("device", row) ?? 0];
    const key = `${rank} ${device}`;
    if (!found.has(key)) found.set(key, { rank, device, rows: [] });
    found.get(key).rows.push(row);
  }
  const made = [...found.values()].sort((a, b) => a.rank - b.rank || a.device - b.device);
  for (const each of made) each.rows.sort((a, b) => steps.at("step", a) - steps.at("step", b));
  const several = new Set(made.map((each) => each.rank)).size < made.length;
  for (const each of made) each.label = several ? `rank ${each.rank} · device ${each.device}` : `rank ${each.rank}`;
  return made;
})();

function total(frame, key, rows) {
  const values = frame.values(key);
  let sum = 0;
  if (values) for (const row of rows) sum += values[row] || 0;
  return sum;
}

/** Lengths of the stack's parts, which add up to the whole: what computes alone, computes over communication, ... */
function partsOf(frame, rows) {
  const over = total(frame, OVERLAPPED.key, rows);
  return STACK.map((part) => [part === OVERLAPPED ? over : total(frame, part.key, rows) - (part === PARTS[0] ? over : 0), part.colour]);
}

function drawSummary() {
  const rows = devices.flatMap((each) => each.rows);
  const windows = rows.map((row) => steps.at("window_ns", row)).sort((a, b) => a - b);
  const whole = total(steps, "window_ns", rows);
  const figure = (name, value, rest) => h("div", null, h("dt", null, name), h("dd", null, value, rest ? h("small", null, ` ${rest}`) : null));
  const middle = windows[windows.length >> 1];
  const numSteps = new Set(rows.map((row) => steps.at("step", row))).size;
  const numRanks = new Set(devices.map((each) => each.rank)).size;
  const parts = PARTS.map((part) => ({ ...part, share: total(steps, part.key, rows) / whole }));
  const hidden = total(steps, OVERLAPPED.key, rows) / whole;
  return section("time", "Where the time goes", null, null,
    h("dl", { class: "figures" },
      figure("median step", time(middle)),
      figure("fastest – slowest", `${time(windows[0])} – ${time(windows[windows.length - 1])}`),
      figure("computing", share(parts[0].share)),
      figure("waiting for communication", share(parts[1].share)),
      figure("idle", share(parts[3].share)),
      figure("looked at", `${numSteps}`, `${numSteps === 1 ? "step" : "steps"} × ${numRanks} ${numRanks === 1 ? "rank" : "ranks"}`)),
    stack(partsOf(steps, rows).map(([ns, colour]) => [ns / whole, colour]), "Shares of the mean step"),
    legend([...parts.slice(0, 1), hidden > 0 ? { colour: "overlapped", label: "of it, over communication", share: hidden } : null, ...parts.slice(1)].filter(Boolean)
      .map((part) => [part.colour, part.label, `${share(part.share)} · ${time(part.share * whole / rows.length)}`])));
}

function stack(parts, label, thin, width = 1) {
  const made = h("div", { class: thin ? "stack thin" : "stack", role: "img", "aria-label": label },
    parts.filter(([part]) => part > 0).map(([part, colour]) => bar(part, colour)));
  if (width < 1) made.style.width = wide(width);
  return made;
}

// ---- a column for each step

const GUTTER = 56;
function columnsOf(width) {
  const { rows } = devices[view.device];
  const pitch = Math.min(64, (width - GUTTER - 8) / rows.length);
  return { rows, pitch, at: (x) => Math.floor((x - GUTTER) / pitch) };
}

function drawColumns(ctx, width, height) {
  const { rows, pitch } = columnsOf(width);
  const ink = colours();
  const most = Math.max(...rows.map((row) => steps.at("window_ns", row)));
  const [top, bottom] = [10, height - 34];
  const scale = (bottom - top) / most;
  const [unit, size] = unitOf(most);
  ctx.textAlign = "right";
  for (const each of ticks(most / size, 5)) {
    const y = Math.round(bottom - each * size * scale) + 0.5;
    ctx.fillStyle = ink.line;
    ctx.fillRect(GUTTER, y - 0.5, width - GUTTER, 1);
    ctx.fillStyle = ink.muted;
    ctx.fillText(`${plain(each)}${each === 0 ? "" : ` ${unit}`}`, GUTTER - 8, y);
  }
  const gap = pitch > 12 ? 4 : pitch > 4 ? 1 : 0;
  const every = Math.max(1, Math.ceil(44 / pitch));
  ctx.textAlign = "center";
  rows.forEach((row, i) => {
    const x = GUTTER + i * pitch;
    const broad = Math.max(0.6, pitch - gap);
    if (i === view.at) {
      ctx.fillStyle = ink["accent-wash"];
      ctx.fillRect(x - gap / 2, 0, pitch, height);
    }
    let y = bottom;
    for (const [ns, colour] of partsOf(steps, [row])) {
      ctx.fillStyle = ink[colour];
      ctx.fillRect(x, y - ns * scale, broad, ns * scale);
      y -= ns * scale;
    }
    if (i % every === 0 || i === view.at) {
      if (i === view.at || Math.abs(i - view.at) >= every || view.at < 0) {
        ctx.fillStyle = i === view.at ? ink.accent : ink.muted;
        ctx.fillText(String(steps.at("step", row)), x + broad / 2, bottom + 12);
      }
    }
  });
  ctx.textAlign = "left";
  ctx.fillStyle = ink.faint;
  ctx.fillText("step", GUTTER, height - 7);
}

// ---- its phases

function rowsOfPhases(device, stepNumber) {
  const phases = frames.phases;
  if (!phases) return [];
  const names = new Map();
  for (let row = 0; row < phases.length; row++) {
    if (phases.at("rank", row) !== device.rank) continue;
    const onDevice = phases.at("timeline", row) !== "host";
    if (onDevice && phases.has("device") && (phases.at("device", row) ?? 0) !== device.device) continue;
    if (stepNumber !== null && phases.at("step", row) !== stepNumber) continue;
    const name = phases.at("phase", row) ?? "(outside every phase)";
    if (!names.has(name)) names.set(name, { name, device: [], host: [] });
    names.get(name)[onDevice ? "device" : "host"].push(row);
  }
  return [...names.values()];
}

function drawPhases() {
  const device = devices[view.device];
  const rows = view.at < 0 ? device.rows : [device.rows[view.at]];
  const number = view.at < 0 ? null : steps.at("step", rows[0]);
  const whole = total(steps, "window_ns", rows);
  const heading = view.at < 0 ? `Mean of ${rows.length} steps` : `Step ${number}`;
  const five = STACK.filter((part) => steps.has(part.key));
  const made = [
    h("h3", null, `${heading} · ${device.label} · ${time(whole / rows.length)}`),
    h("table", { class: "five" }, h("tbody", null, five.map((part) => {
      const sum = total(steps, part.key, rows);
      return h("tr", null,
        h("td", { class: "text" }, h("span", { class: `swatch c-${part.colour}` }), ` ${part === OVERLAPPED ? "of it, over communication" : part.label}`),
        h("td", null, time(sum / rows.length)), h("td", null, share(sum / whole)));
    }))),
  ];
  const phases = rowsOfPhases(device, number);
  if (!phases.length) return [...made, h("p", { class: "missing" }, data.missing.phases ?? "This step has no phases.")];
  const measure = (frameRows) => total(frames.phases, "window_ns", frameRows) / rows.length;
  const longest = Math.max(...phases.map((each) => Math.max(measure(each.device), measure(each.host))));
  const cell = (own, place) => {
    if (!own.length) return [h("td", { class: "text part" }), h("td", null, "")];
    const window = total(frames.phases, "window_ns", own);
    const parts = partsOf(frames.phases, own).map(([ns, colour]) => [ns / window, colour]);
    const known = parts.some(([part]) => part > 0);
    return [h("td", { class: "text part" }, stack(known ? parts : [[1, "operator"]], `${place} timeline`, true, window / rows.length / longest)),
      h("td", null, time(window / rows.length))];
  };
  const table = h("table", null,
    h("thead", null, h("tr", null, h("th", { class: "text" }, "phase"), h("th", { class: "text", colspan: "2" }, "on the device"), h("th", { class: "text", colspan: "2" }, "on the host"))),
    h("tbody", null, phases.map((each) => h("tr", null, h("td", { class: "text phase" }, short(each.name)), cell(each.device, "device"), cell(each.host, "host")))));
  return [...made, h("div", { class: "scroll" }, table)];
}

function drawSteps() {
  if (!steps) return section("steps", "Steps", null, null, h("p", { class: "missing" }, data.missing.steps));
  const panel = h("div", { class: "panel" });
  const surface = new Surface(300, "Time of each step, split into its parts; arrow keys go from step to step", drawColumns);
  const { canvas } = surface;
  const spoken = h("p", { class: "spoken", "aria-live": "polite" });
  const show = () => { panel.replaceChildren(...drawPhases()); surface.ask(); };
  listeners.push(show);
  let pinned = -1;
  const under = (event) => {
    const { rows, at } = columnsOf(canvas.clientWidth);
    const i = at(event.offsetX);
    return i >= 0 && i < rows.length ? i : -1;
  };
  canvas.addEventListener("pointermove", (event) => { const i = under(event); if (i >= 0 && i !== view.at) look({ at: i }); });
  canvas.addEventListener("pointerleave", () => look({ at: pinned }));
  canvas.addEventListener("click", (event) => {
    const i = under(event);
    pinned = i === pinned ? -1 : i;
    look({ at: i });
    if (i >= 0) goToStep(devices[view.device].rank, steps.at("step", devices[view.device].rows[i]));
  });
  canvas.addEventListener("keydown", (event) => {
    const last = devices[view.device].rows.length - 1;
    const to = { ArrowRight: Math.min(last, view.at + 1), ArrowLeft: Math.max(0, view.at - 1), Home: 0, End: last, Escape: -1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    pinned = to;
    look({ at: to });
    spoken.textContent = panel.querySelector("h3").textContent;
  });
  const pick = h("select", { "aria-label": "Rank", on: { change: (event) => { pinned = -1; look({ device: Number(event.target.value), at: -1 }); } } },
    devices.map((each, i) => h("option", { value: String(i) }, each.label)));
  listeners.push(() => { pick.value = String(view.device); });
  show();
  return section("steps", "Steps",
    "Each column is a step of the device: what it computed, what it only waited for. Point at a step for its phases; a click goes to it in the timeline.",
    devices.length > 1 ? [h("label", null, "Show", pick)] : null,
    h("div", { class: "split" }, h("figure", null, canvas,
      legend(STACK.filter((part) => steps.has(part.key)).map((part) => [part.colour, part.label]))), panel),
    spoken, asTable(steps, "Steps as a table"));
}
