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
    const [rank, device] = [steps.at("rank", row), steps.at("device", row)];
    const key = `${rank} ${device}`;
    if (!found.has(key)) found.set(key, { rank, device, rows: [] });
    found.get(key).rows.push(row);
  }
  const made = [...found.values()].sort((a, b) => a.rank - b.rank || a.device - b.device);
  for (const each of made) each.rows.sort((a, b) => steps.at("step", a) - steps.at("step", b));
  const several = new Set(made.map((each) => each.rank)).size < made.length;
  for (const each of made) each.label = `rank ${each.rank}${each.device < 0 ? " · host" : several ? ` · device ${each.device}` : ""}`;
  return made;
})();

function total(frame, key, rows) {
  const values = frame?.values(key);
  let sum = 0;
  if (values) for (const row of rows) sum += values[row] || 0;
  return sum;
}

const partsOf = (frame, rows) => PARTS.map((part) => [total(frame, part.key, rows), part.colour]);

function drawSummary() {
  const rows = devices.flatMap((each) => each.rows);
  const windows = rows.map((row) => steps.at("window_ns", row)).sort((a, b) => a - b);
  const whole = total(steps, "window_ns", rows);
  const figure = (name, value, rest) => h("div", null, h("dt", null, name), h("dd", null, value, rest ? h("small", null, ` ${rest}`) : null));
  const middle = windows[windows.length >> 1];
  const numSteps = new Set(rows.map((row) => steps.at("step", row))).size;
  const numRanks = new Set(devices.map((each) => each.rank)).size;
  const parts = PARTS.map((part) => ({ ...part, share: total(steps, part.key, rows) / whole }));
  const of = (...keys) => share(parts.filter((part) => keys.includes(part.key)).reduce((sum, part) => sum + part.share, 0));
  return section("time", "Where the time goes", null, null,
    h("dl", { class: "figures" },
      figure("median step", time(middle)),
      figure("fastest – slowest", `${time(windows[0])} – ${time(windows[windows.length - 1])}`),
      figure("computing", of("compute_ns", "overlapped_communication_ns")),
      figure("waiting for communication", of("exposed_communication_ns")),
      figure("idle", of("idle_ns")),
      figure("looked at", `${numSteps}`, `${numSteps === 1 ? "step" : "steps"} × ${numRanks} ${numRanks === 1 ? "rank" : "ranks"}`)),
    stack(parts.map((part) => [part.share, part.colour]), "Shares of the mean step"),
    legend(parts.filter((part) => part.share > 0).map((part) => [part.colour, part.label, `${share(part.share)} · ${time(part.share * whole / rows.length)}`])));
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
        const number = steps.at("step", row);
        ctx.fillText(number < 0 ? "all" : String(number), x + broad / 2, bottom + 12);
      }
    }
  });
  ctx.textAlign = "left";
  ctx.fillStyle = ink.faint;
  ctx.fillText("step", GUTTER, height - 7);
}

// ---- its phases

/** Rows of a frame by rank, counted once: pointing at a step must not go through all ranks. */
const byRank = new Map();
function rowsOfRank(frame, rank) {
  if (!frame) return [];
  if (!byRank.has(frame)) {
    const made = new Map();
    const ranks = frame.values("rank");
    for (let row = 0; row < frame.length; row++) {
      if (!made.has(ranks[row])) made.set(ranks[row], []);
      made.get(ranks[row]).push(row);
    }
    byRank.set(frame, made);
  }
  return byRank.get(frame).get(rank) ?? [];
}

function rowsOfPhases(device, stepNumber) {
  const names = new Map();
  for (const [frame, place] of [[frames.phases, "device"], [frames.host_phases, "host"]]) {
    for (const row of rowsOfRank(frame, device.rank)) {
      if (stepNumber !== null && frame.at("step", row) !== stepNumber) continue;
      if (place === "device" && frame.at("device", row) !== device.device) continue;
      const within = frame.at("within", row) || "";
      const phase = frame.at("phase", row) || "(outside every phase)";
      const key = `${within}\n${phase}`;
      if (!names.has(key)) names.set(key, { within: within === phase ? "" : within, phase, device: [], host: [] });
      names.get(key)[place].push(row);
    }
  }
  return [...names.values()];
}

function drawPhases() {
  const device = devices[view.device];
  const rows = view.at < 0 ? device.rows : [device.rows[view.at]];
  const number = view.at < 0 ? null : steps.at("step", rows[0]);
  const whole = total(steps, "window_ns", rows);
  const heading = view.at >= 0 ? nameOfStep(number) : rows.length > 1 ? `Mean of ${rows.length} steps` : nameOfStep(steps.at("step", rows[0]));
  const made = [
    h("h3", null, `${heading} · ${device.label} · ${time(whole / rows.length)}`),
    h("table", { class: "five" }, h("tbody", null, PARTS.map((part) => {
      const sum = total(steps, part.key, rows);
      return h("tr", null, h("td", { class: "text" }, h("span", { class: `swatch c-${part.colour}` }), ` ${part.label}`),
        h("td", null, time(sum / rows.length)), h("td", null, share(sum / whole)));
    }))),
  ];
  const phases = rowsOfPhases(device, number);
  if (!phases.length) return [...made, h("p", { class: "missing" }, data.missing.phases ?? "This step has no phases.")];
  for (const each of phases) {
    each.parts = partsOf(frames.phases, each.device).map(([ns, colour]) => [ns / rows.length, colour]);
    each.onDevice = each.parts.reduce((sum, [ns]) => sum + ns, 0);
    const [own, inOperators] = ["own_ns", "operator_ns"].map((key) => total(frames.host_phases, key, each.host) / rows.length);
    each.onHost = own;
    each.hostParts = [[inOperators, "operator"], [own - inOperators, "python"]];
  }
  phases.sort((a, b) => Math.max(b.onDevice, b.onHost) - Math.max(a.onDevice, a.onHost));
  const longest = Math.max(...phases.map((each) => Math.max(each.onDevice, each.onHost)));
  const cell = (ns, parts, place) => [h("td", { class: "text part" }, ns > 0 ? stack(parts.map(([part, colour]) => [part / ns, colour]), `${place} timeline`, true, ns / longest) : null),
    h("td", null, ns > 0 ? time(ns) : "")];
  const row = (each) => h("tr", null,
    h("td", { class: "text phase", title: each.phase }, each.within ? h("span", { class: "quiet" }, `${short(each.within)} › `) : null, short(each.phase)),
    cell(each.onDevice, each.parts, "device"), cell(each.onHost, each.hostParts, "host"));
  const FEW = 9;
  const body = h("tbody", null, phases.slice(0, FEW).map(row));
  const rest = phases.length - FEW;
  const more = rest > 0 ? h("p", { class: "more" }, h("button", { type: "button", on: { click: (event) => {
    body.append(...phases.slice(FEW).map(row));
    event.target.parentElement.remove();
  } } }, `Show ${rest} more phases`)) : null;
  return [...made,
    h("table", { class: "phases" },
      h("thead", null, h("tr", null, h("th", { class: "text" }, "phase"), h("th", { class: "text", colspan: "2" }, "on the device"), frames.host_phases ? h("th", { class: "text", colspan: "2" }, "on the host") : null)),
      body), more,
    frames.host_phases ? legend([["operator", "operators"], ["python", "Python, waiting"]]) : null].filter(Boolean);
}
const nameOfStep = (number) => (number < 0 ? "Whole trace" : `Step ${number}`);

function drawSteps() {
  if (!steps) return section("steps", "Steps", null, null, h("p", { class: "missing" }, data.missing.steps));
  const panel = h("div", { class: "panel" });
  const surface = new Surface(330, "Time of each step, split into its parts; arrow keys go from step to step", drawColumns);
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
  const pick = h("select", { name: "rank", "aria-label": "Rank", on: { change: (event) => { pinned = -1; look({ device: Number(event.target.value), at: -1 }); } } },
    devices.map((each, i) => h("option", { value: String(i) }, each.label)));
  listeners.push(() => { pick.value = String(view.device); });
  show();
  return section("steps", "Steps",
    "Each column is a step of the device: what it computed, what it only waited for. Point at a step for its phases; a click keeps it, and goes to it if the timeline has it.",
    devices.length > 1 ? [h("label", null, "Show", pick)] : null,
    h("div", { class: "split" }, h("figure", null, canvas,
      legend(PARTS.map((part) => [part.colour, part.label]))), panel),
    spoken, asTable(steps, "Steps as a table"));
}
