// The critical path: what the step is made of, on which rank, and what it would gain if some of that took no time.

const COLOUR_OF_CATEGORY = { ...COLOUR_OF_KIND, waiting: "sync", copy: "memory", idle: "idle" };
const MOST_STACKS = 8;

function drawPath() {
  const frame = frames.path;
  if (!frame) return section("path", "Critical path", null, null, h("p", { class: "missing" }, data.missing.path));
  const joint = Boolean(frames.across);
  const sums = (key, rows) => {
    const made = new Map();
    for (const row of rows) made.set(frame.at(key, row), (made.get(frame.at(key, row)) ?? 0) + frame.at("time_ns", row));
    return [...made].sort((a, b) => b[1] - a[1]);
  };
  const every = Array.from({ length: frame.length }, (_, row) => row);
  const ranks = [...new Set(every.map((row) => frame.at("rank", row)))].sort((a, b) => a - b);
  const step = frame.at("step", 0) ?? -1;
  const colour = (category) => COLOUR_OF_CATEGORY[category] ?? "faint";
  const bars = joint ? [["", every]] : ranks.slice(0, MOST_STACKS).map((rank) => [ranks.length > 1 ? `rank ${rank}` : "", every.filter((row) => frame.at("rank", row) === rank)]);
  const drawn = bars.map(([label, rows]) => {
    const made = sums("category", rows);
    const whole = made.reduce((sum, [, ns]) => sum + ns, 0);
    return [label ? h("p", { class: "quiet" }, `${label} · ${time(whole)}`) : null, stack(made.map(([category, ns]) => [ns / whole, colour(category)]), `Critical path ${label}`, bars.length > 1)];
  });
  const whole = sums("category", every);
  const all = whole.reduce((sum, [, ns]) => sum + ns, 0);
  const where = joint ? h("p", { class: "readout" }, h("b", null, time(all)), ": ", sums("rank", every).map(([rank, ns]) => `rank ${rank} ${share(ns / all)}`).join(", ")) : null;
  const { node, box } = sortedTable(frame, { order: ["category", "name", "rank", "time_ns", "share", "count"], by: "time_ns", first: 10, search: frame.length > 8, hidden: ["step"] });
  const gains = frames.gains ? sortedTable(frames.gains, { order: ["change", "name", "rank", "gain_ns", "gain_share"], by: "gain_ns", first: 10 }).node : [h("p", { class: "missing" }, data.missing.gains)];
  return section("path", "Critical path",
    `What ${step < 0 ? "the trace" : `step ${step}`} waited for, from its end back to its begin${joint ? `, through all ranks: where one waits in a collective, the path goes on with the rank that came last` : ""}. What is not on it cannot make the step shorter.`,
    box ? [box] : null,
    ...drawn.flat().filter(Boolean), legend(whole.map(([category, ns]) => [colour(category), category, share(ns / all)])), where, ...node,
    h("h3", { class: "below" }, "What a step would gain at most"), ...gains);
}

function drawStragglers() {
  if (!frames.stragglers) return [];
  const { node } = sortedTable(frames.stragglers, { order: ["rank", "num_late", "num_steps", "mean_late_ns", "stream", "name"], by: "num_late", first: 16 });
  return [h("h3", { class: "below" }, "Who comes last to the exchange that differs most"), ...node];
}
