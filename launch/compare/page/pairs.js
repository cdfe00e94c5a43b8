// The pairs of each arm in their order, what they said so far, and every segment over time.

function pairRange(each) {
  const settled = each.running.filter((_, i) => i >= Math.min(2, each.running.length - 1));
  const last = each.running[each.running.length - 1];
  const values = [1, ...each.points.map(([, value]) => value), ...settled.flatMap(({ low, high }) => [low, high]), ...(last ? [1 + last.floor, 1 / (1 + last.floor)] : [])].map(Math.log);
  const mids = each.points.map(([, value]) => Math.log(value)).concat(0);
  const room = Math.max(0.02, 2 * (Math.max(...mids) - Math.min(...mids)));
  const low = Math.max(Math.min(...values), Math.min(...mids) - room);
  const high = Math.min(Math.max(...values), Math.max(...mids) + room);
  const pad = Math.max(0.002, 0.06 * (high - low));
  return [low - pad, high + pad];
}

function pairChart(each) {
  const rounds = Math.max(2, ...each.points.map(([round]) => round));
  const [low, high] = pairRange(each);
  const column = (area, round) => area.left + 14 + ((round - 1) / (rounds - 1)) * (area.right - area.left - 28);
  const surface = new Surface(230, `Speed of ${each.arm} in each pair; arrow keys go from pair to pair`, (ctx, width, height) => {
    const ink = colours();
    const area = plot(width, height);
    const x = (round) => column(area, round);
    const y = (value) => area.bottom - ((Math.log(value) - low) / (high - low)) * (area.bottom - area.top);
    const colour = ink[colourOfArm(each.arm)];
    const [from, to] = [Math.exp(low), Math.exp(high)];
    ruled(ctx, area, to / from < 4 ? between(from, to, 5) : [0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 100], y, tickText);
    along(ctx, area, between(1, rounds, Math.min(8, rounds)).filter(Number.isInteger), x, String, "pair");
    within(ctx, area, () => {
      const bands = each.running;
      if (bands.length) {
        ctx.fillStyle = colour;
        ctx.globalAlpha = 0.16;
        ctx.beginPath();
        bands.forEach((now, i) => (i ? ctx.lineTo(x(now.round), y(now.high)) : ctx.moveTo(x(now.round), y(now.high))));
        [...bands].reverse().forEach((now) => ctx.lineTo(x(now.round), y(now.low)));
        ctx.fill();
        ctx.globalAlpha = 1;
        for (const sign of [1, -1]) line(ctx, bands.map((now) => [x(now.round), y((1 + now.floor) ** sign)]), ink.muted, 1, [4, 4]);
      }
      line(ctx, [[area.left, y(1)], [area.right, y(1)]], ink.ink, 1);
      if (each.decided) line(ctx, [[x(each.decided), area.top], [x(each.decided), area.bottom]], ink.faint, 1, [2, 3]);
      line(ctx, bands.map((now) => [x(now.round), y(now.speed)]), colour, 2);
      for (const [round, value] of each.points) {
        ctx.fillStyle = ink.paper;
        ctx.strokeStyle = colour;
        ctx.lineWidth = 1.75;
        ctx.beginPath();
        ctx.arc(x(round), y(value), 3.75, 0, 2 * Math.PI);
        ctx.fill();
        ctx.stroke();
      }
    });
  });
  const nearest = (px) => {
    const area = plot(surface.canvas.clientWidth, 230);
    let best = -1;
    each.points.forEach(([round], i) => { if (best < 0 || Math.abs(column(area, round) - px) < Math.abs(column(area, each.points[best][0]) - px)) best = i; });
    return best;
  };
  const spoken = readable(surface, () => each.points.length, nearest, (i) => {
    const [round, value] = each.points[i];
    const now = each.running.find((one) => one.round === round);
    return [`pair ${round}: ${speed(value)}`, ...(now ? [`so far ${speed(now.speed)} ${spread(now.low, now.high)}`, `noise floor ±${(100 * now.floor).toFixed(2)} %`] : [])];
  });
  const told = each.different ? chip("not the same training: no multiplier", "bad") : each.claimed ? null : chip("sameness not checked: no multiplier", "open");
  return h("figure", null, h("figcaption", null, h("span", { class: `swatch c-${colourOfArm(each.arm)}` }), h("b", null, each.arm),
    each.verdict ? h("span", { class: "quiet" }, each.decided ? `${each.verdict} after ${each.decided} pairs` : each.verdict) : null, told), surface.canvas, spoken);
}

function drawPairs() {
  const shown = data.pairs.filter((each) => each.points.length);
  if (!shown.length) return section("pairs", "Pairs", null, null, h("p", { class: "missing" }, "No pair was measured to its end."));
  return section("pairs", "Pairs", [data.of ? `${data.of} ` : "", "A circle is one pair: how many times as fast as the baseline beside it. The line is the estimate from all pairs so far, the band its interval; between the dashed lines equal arms differ too."].join(""),
    null, h("div", { class: shown.length > 1 ? "charts two" : "charts" }, shown.map(pairChart)),
    h("details", null, h("summary", null, "Pairs as a table"), simpleTable(["arm", "pair", "speed", "so far", "interval", "noise floor, %"],
      shown.flatMap((each) => each.points.map(([round, value]) => {
        const now = each.running.find((one) => one.round === round);
        return [each.arm, String(round), speed(value), now ? speed(now.speed) : null, now ? spread(now.low, now.high) : null, now ? (100 * now.floor).toFixed(2) : null];
      })))));
}

// ---- the machine

function drawSegments() {
  const rows = data.segments;
  if (!rows.length) return null;
  const last = Math.max(1, ...rows.map((each) => each.at_s)) / 60;
  const sizes = rows.map((each) => Math.abs(each.beside_usual)).sort((a, b) => a - b);
  const most = Math.max(0.005, 1.15 * sizes[Math.floor(0.98 * (sizes.length - 1))]);
  const spot = (area, each) => [area.left + 8 + (each.at_s / 60 / last) * (area.right - area.left - 16),
    (area.top + area.bottom) / 2 - (Math.max(-1, Math.min(1, each.beside_usual / most)) * (area.bottom - area.top)) / 2];
  const surface = new Surface(240, "Each segment's median step time beside the usual one of its arm, over time; arrow keys go from segment to segment", (ctx, width, height) => {
    const ink = colours();
    const area = plot(width, height);
    const y = (value) => (area.top + area.bottom) / 2 - ((value / most) * (area.bottom - area.top)) / 2;
    ruled(ctx, area, between(-most, most, 4), y, (value) => percent(value, most < 0.02 ? 1 : 0));
    along(ctx, area, ticks(last, Math.min(8, Math.max(2, Math.floor(width / 110)))), (value) => area.left + 8 + (value / last) * (area.right - area.left - 16), plain, "minutes since the first segment");
    for (const each of rows) {
      const [px, py] = spot(area, each);
      ctx.strokeStyle = ink[colourOfArm(each.arm)];
      ctx.fillStyle = each.phase === "calibration" ? ink.paper : ink[colourOfArm(each.arm)];
      ctx.lineWidth = 1.5;
      ctx.beginPath();
      if (Math.abs(each.beside_usual) > most) { // beyond the edge: a triangle that points there
        const sign = each.beside_usual > 0 ? 1 : -1;
        ctx.moveTo(px - 4.5, py + 3 * sign);
        ctx.lineTo(px + 4.5, py + 3 * sign);
        ctx.lineTo(px, py - 4.5 * sign);
        ctx.closePath();
      } else ctx.arc(px, py, 3.5, 0, 2 * Math.PI);
      ctx.fill();
      ctx.stroke();
    }
  });
  const nearest = (px, py) => {
    const area = plot(surface.canvas.clientWidth, 240);
    const away = (each) => { const [x, y] = spot(area, each); return Math.hypot(x - px, y - py); };
    let best = -1;
    rows.forEach((each, i) => { if (away(each) < (best < 0 ? 24 : away(rows[best]))) best = i; });
    return best;
  };
  const spoken = readable(surface, () => rows.length, nearest, (i) => [`${rows[i].phase} ${rows[i].round}: ${rows[i].arm}`, `${rows[i].step_ms.toPrecision(4)} ms/step, ${percent(rows[i].beside_usual)} beside its usual`,
    `after ${(rows[i].at_s / 60).toFixed(1)} minutes${rows[i].steady ? "" : "; its warm-up had not settled"}`]);
  const names = [...new Set(rows.map((each) => each.arm))];
  return section("machine", "Machine", "What the machine did meanwhile: each segment beside the usual step time of its arm, in order of time. A slope is drift, a few that lie apart are disturbances; pairs stand close together so that both meet what they share.",
    null, h("figure", null, surface.canvas, armLegend(names), h("p", { class: "hint" }, "Hollow: calibration, the baseline against itself.")), spoken);
}
