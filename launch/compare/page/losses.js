// Loss of each arm by step, and how far it is from the baseline's.

function curveChart(height, curves, value, label, title, rule, name) {
  const xs = curves.flatMap((each) => each.x);
  const ys = curves.flatMap(value).filter((each) => each !== null);
  const [first, last] = [Math.min(...xs), Math.max(...xs)];
  let [low, high] = [Math.min(...ys), Math.max(...ys)];
  const pad = Math.max(1e-9, 0.06 * (high - low) || Math.abs(high) * 0.01);
  [low, high] = [low - pad, high + pad];
  const surface = new Surface(height, name, (ctx, width, tall) => {
    const ink = colours();
    const area = plot(width, tall);
    const x = (each) => area.left + ((each - first) / Math.max(1, last - first)) * (area.right - area.left);
    const y = (each) => area.bottom - ((each - low) / (high - low)) * (area.bottom - area.top);
    const marks = between(low, high, 5);
    ruled(ctx, area, marks, y, (each) => rule(each, marks));
    along(ctx, area, ticks(last, Math.max(2, Math.floor(width / 130))).filter((each) => each >= first), x, plain, title);
    within(ctx, area, () => curves.forEach((curve, i) => {
      const points = curve.x.map((each, j) => [x(each), value(curve)[j]]).filter(([, each]) => each !== null).map(([px, each]) => [px, y(each)]);
      // The first one lies below and is broad, so that curves on top of each other are all seen.
      line(ctx, points, ink[colourOfArm(curve.arm)], curve.arm === "baseline" ? 4 : 1.5, curve.arm === "baseline" || i < 2 ? [] : [6, 3 + i]);
    }));
  });
  const nearest = (px) => {
    const area = plot(surface.canvas.clientWidth, height);
    const wanted = first + ((px - area.left) / Math.max(1, area.right - area.left)) * (last - first);
    const { x } = curves[0];
    let best = 0;
    x.forEach((each, i) => { if (Math.abs(each - wanted) < Math.abs(x[best] - wanted)) best = i; });
    return x.length ? best : -1;
  };
  const spoken = readable(surface, () => curves[0].x.length, nearest, (i) => [`${title} ${plain(curves[0].x[i])}`, ...curves.map((curve) => {
    const j = curve.x.indexOf(curves[0].x[i]);
    return `${curve.arm}: ${j < 0 || value(curve)[j] === null ? "–" : label(value(curve)[j])}`;
  })]);
  return [surface.canvas, spoken];
}

/** As many digits as tell the marks of an axis apart. */
function places(marks) {
  const step = marks.length > 1 ? Math.abs(marks[1] - marks[0]) : Math.abs(marks[0]) || 1;
  return Math.max(0, Math.min(8, Math.ceil(-Math.log10(step) - 1e-9)));
}

function drawLosses() {
  const { losses } = data;
  if (!losses?.curves.length) return section("losses", "Losses", null, null, h("p", { class: "missing" }, "No segment has left its losses."));
  const beside = losses.beside.filter((each) => each.x.length);
  const far = beside.map((each) => [each.arm, Math.max(...each.share.map((one) => Math.abs(one ?? 0)))]);
  return section("losses", "Losses", "All arms begin with the same weights and see the same data in the same order. Speed says nothing if the curves part; whether they may is what sameness, below, tests.", null,
    h("div", { class: beside.length ? "charts two" : "charts" },
      h("figure", null, h("figcaption", null, h("b", null, "Loss"), h("span", { class: "quiet" }, "nats a token, mean over segments")),
        ...curveChart(260, losses.curves, (each) => each.loss, (each) => each.toFixed(5), losses.x, (each, marks) => each.toFixed(places(marks)), "Loss of each arm by step")),
      beside.length ? h("figure", null, h("figcaption", null, h("b", null, "Beside the baseline"), h("span", { class: "quiet" }, far.map(([arm, most]) => `${arm} at most ${most === 0 ? "0" : `${(100 * most).toPrecision(2)} %`}`).join(", "))),
        ...curveChart(260, beside, (each) => each.share, (each) => percent(each, 5), losses.x, (each, marks) => percent(each, places(marks.map((one) => 100 * one))), "Relative difference of the loss of each arm from that of the baseline")) : null),
    armLegend(losses.curves.map((each) => each.arm)));
}
