// The allocators over time: what each device had allocated and reserved, and what held it at the peak.

const DEVICE_TYPES = { 0: "host", 1: "device" };

function drawMemory() {
  const frame = frames.memory;
  if (!frame) return section("memory", "Memory", null, null, h("p", { class: "missing" }, data.missing.memory));
  const [ranks, types, numbers, at, allocated, reserved] = ["rank", "device_type", "device", "at_ns", "allocated_bytes", "reserved_bytes"].map((name) => frame.values(name));
  const curves = new Map();
  for (let row = 0; row < frame.length; row++) {
    const key = `${ranks[row]} ${types[row]} ${numbers[row]}`;
    if (!curves.has(key)) curves.set(key, { rank: ranks[row], type: types[row], number: numbers[row], rows: [], peak: row });
    const curve = curves.get(key);
    curve.rows.push(row);
    if (allocated[row] > allocated[curve.peak]) curve.peak = row;
  }
  const all = [...curves.values()].sort((a, b) => (a.type === 0) - (b.type === 0) || a.rank - b.rank || a.number - b.number);
  const severalRanks = new Set(all.map((each) => each.rank)).size > 1;
  const nameOf = (each) => `${severalRanks ? `rank ${each.rank} · ` : ""}${DEVICE_TYPES[each.type] ?? "device"}${each.type > 0 ? ` ${each.number}` : ""}`;
  let chosen = all[0];
  let near = -1; // a place among the rows of the chosen curve
  const from = at.reduce((a, b) => Math.min(a, b), Infinity);
  const to = Math.max(from + 1, at.reduce((a, b) => Math.max(a, b), -Infinity));
  const LEFT = 84;
  const marks = frames.memory_steps ? Array.from({ length: frames.memory_steps.length }, (_, row) => ({ rank: frames.memory_steps.at("rank", row), step: frames.memory_steps.at("step", row), at: frames.memory_steps.at("at_ns", row) })) : [];
  const stepAt = (ns) => marks.filter((each) => each.rank === chosen.rank && each.at <= ns).reduce((last, each) => (!last || each.at > last.at ? each : last), null);
  const place = (width) => (ns) => LEFT + ((ns - from) / (to - from)) * (width - LEFT - 8);

  const surface = new Surface(220, "Memory over time; arrow keys go from point to point", (ctx, width, height) => {
    const ink = colours();
    const x = place(width);
    const [top, bottom] = [10, height - 22];
    const most = Math.max(1, ...chosen.rows.map((row) => Math.max(allocated[row], reserved[row])));
    const y = (value) => bottom - (Math.max(0, value) / most) * (bottom - top);
    const unit = [2 ** 30, 2 ** 20, 2 ** 10, 1].find((size) => most >= size) ?? 1;
    ctx.textAlign = "right";
    for (const tick of ticks(most / unit, 4)) {
      ctx.fillStyle = ink.line;
      ctx.fillRect(LEFT, Math.round(y(tick * unit)), width - LEFT, 1);
      ctx.fillStyle = ink.muted;
      ctx.fillText(bytes(tick * unit), LEFT - 8, y(tick * unit));
    }
    ctx.textAlign = "left";
    let last = -Infinity;
    for (const mark of marks) {
      if (mark.rank !== chosen.rank || mark.at < from || mark.at > to) continue;
      ctx.fillStyle = ink.line;
      ctx.fillRect(Math.round(x(mark.at)), top, 1, bottom - top + 6);
      if (x(mark.at) - last < 52) continue;
      last = x(mark.at);
      ctx.fillStyle = ink.accent;
      ctx.fillText(`step ${mark.step}`, last + 3, bottom + 12);
    }
    const trace = (values) => {
      ctx.beginPath();
      ctx.moveTo(x(at[chosen.rows[0]]), y(values[chosen.rows[0]]));
      chosen.rows.forEach((row, i) => {
        if (i) ctx.lineTo(x(at[row]), y(values[chosen.rows[i - 1]]));
        ctx.lineTo(x(at[row]), y(values[row]));
      });
    };
    trace(allocated);
    ctx.lineTo(x(at[chosen.rows[chosen.rows.length - 1]]), bottom);
    ctx.lineTo(x(at[chosen.rows[0]]), bottom);
    ctx.fillStyle = ink.overlapped;
    ctx.fill();
    trace(allocated);
    ctx.strokeStyle = ink.compute;
    ctx.lineWidth = 1.5;
    ctx.stroke();
    trace(reserved);
    ctx.strokeStyle = ink.memory;
    ctx.stroke();
    const shown = near >= 0 ? chosen.rows[near] : chosen.peak;
    ctx.fillStyle = ink.exposed;
    ctx.beginPath();
    ctx.arc(x(at[shown]), y(allocated[shown]), 4, 0, 7);
    ctx.fill();
  });
  const { canvas } = surface;
  const readout = h("p", { class: "readout", "aria-live": "polite" });
  const say = () => {
    const row = near >= 0 ? chosen.rows[near] : chosen.peak;
    const step = stepAt(at[row]);
    readout.replaceChildren(h("b", null, `${near >= 0 ? "" : "peak "}${bytes(allocated[row])}`),
      ` allocated, ${bytes(reserved[row])} reserved, ${time(at[row])} after the first${step ? `, step ${step.step}` : ""} · ${nameOf(chosen)}`);
    surface.ask();
  };
  const move = (to_) => { near = to_ === null ? -1 : Math.max(0, Math.min(chosen.rows.length - 1, to_)); say(); };
  canvas.addEventListener("pointermove", (event) => {
    const ns = from + ((event.offsetX - LEFT) / Math.max(1, canvas.clientWidth - LEFT - 8)) * (to - from);
    const times = chosen.rows.map((row) => at[row]);
    move(ns < from ? null : firstFrom(times, ns, 0, times.length - 1));
  });
  canvas.addEventListener("pointerleave", () => move(null));
  canvas.addEventListener("keydown", (event) => {
    const next = { ArrowRight: near + 1, ArrowLeft: Math.max(0, near - 1), Home: 0, End: chosen.rows.length - 1, Escape: null }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    move(next);
  });
  const pick = h("select", { name: "memory", "aria-label": "Device", on: { change: (event) => { chosen = all[event.target.value]; move(null); } } },
    all.map((each, i) => h("option", { value: String(i) }, nameOf(each))));
  say();
  const held = frames.held ? sortedTable(frames.held, { order: ["rank", "where", "operator", "phase", "num_blocks", "bytes"], by: "bytes", first: 10, search: frames.held.length > 8 }) : null;
  return section("memory", "Memory", "What the allocator had given out, and what it had reserved for that. Highest points are kept where there are too many to draw.",
    all.length > 1 ? [h("label", null, "Show", pick)] : null,
    h("figure", null, canvas, legend([["compute", "allocated"], ["memory", "reserved"]])), readout,
    ...(held ? [h("h3", { class: "below" }, "Allocated at the peak"), held.box, ...held.node].filter(Boolean) : []));
}
