// The roofline: what a kernel reached against what its arithmetic allows.

function drawRoofline() {
  const frame = frames.roofline;
  if (!frame) return section("roofline", "Roofline", null, null, h("p", { class: "missing" }, data.missing.roofline));
  const points = [];
  for (let row = 0; row < frame.length; row++) {
    const [flops, moved, ns] = ["flops", "bytes", "total_ns"].map((name) => frame.at(name, row));
    const rate = frame.at("achieved_tflops", row) ?? (flops > 0 && ns > 0 ? flops / ns / 1000 : null);
    if (flops > 0 && moved > 0 && rate > 0) points.push({ row, x: flops / moved, y: rate, ns, name: frame.at("name", row) ?? "", bound: frame.at("bound", row) ?? "unknown" });
  }
  points.sort((a, b) => b.ns - a.ns);
  const { tflops, gb_per_s: slopes } = data.peaks;
  const whole = points.reduce((sum, each) => sum + each.ns, 0);
  const kinds = [...new Set(points.map((each) => each.bound))];
  const fixed = { compute: "compute", memory: "memory", launch: "launch", communication: "exposed" };
  const colourOf = (bound) => fixed[Object.keys(fixed).find((each) => bound.startsWith(each))] ?? "faint";
  const box = boxOf(points, tflops, slopes);
  let near = -1;
  let place = null;

  const draw = (ctx, width, height) => {
    const ink = colours();
    const [left, right, top, bottom] = [62, width - 16, 14, height - 38];
    place = {
      x: (value) => left + (Math.log10(value) - box.x0) / (box.x1 - box.x0) * (right - left),
      y: (value) => bottom - (Math.log10(value) - box.y0) / (box.y1 - box.y0) * (bottom - top),
    };
    ctx.textAlign = "center";
    for (let power = Math.ceil(box.x0); power <= box.x1; power++) axis(ctx, ink, place.x(10 ** power), null, top, bottom, plain(10 ** power));
    for (let power = Math.ceil(box.y0); power <= box.y1; power++) axis(ctx, ink, null, place.y(10 ** power), left, right, plain(10 ** power));
    ctx.fillStyle = ink.muted;
    ctx.fillText("FLOP per byte", (left + right) / 2, height - 10);
    ctx.save();
    ctx.translate(12, (top + bottom) / 2);
    ctx.rotate(-Math.PI / 2);
    ctx.fillText("TFLOP/s", 0, 0);
    ctx.restore();
    ctx.save();
    ctx.beginPath();
    ctx.rect(left, top, right - left, bottom - top);
    ctx.clip();
    ctx.lineWidth = 1.5;
    const most = tflops.length ? tflops[0][1] : 10 ** box.y1;
    const steepest = slopes.length ? slopes[0][1] / 1000 : null;
    ctx.strokeStyle = ink.muted;
    for (const [label, gb] of slopes) {
      const until = Math.min(10 ** box.x1, most / (gb / 1000));
      line(ctx, place, 10 ** box.x0, 10 ** box.x0 * gb / 1000, until, until * gb / 1000);
      const angle = Math.atan2(place.y(10) - place.y(1), place.x(10) - place.x(1));
      const at = Math.max(10 ** box.x0 * 1.15, 10 ** box.y0 / (gb / 1000) * 1.6);
      ctx.save();
      ctx.translate(place.x(at), place.y(at * gb / 1000));
      ctx.rotate(angle);
      ctx.textAlign = "left";
      ctx.fillStyle = ink.muted;
      ctx.fillText(`${label} ${plain(gb)} GB/s`, 14, -9);
      ctx.restore();
    }
    for (const [label, rate] of tflops) {
      line(ctx, place, steepest ? rate / steepest : 10 ** box.x0, rate, 10 ** box.x1, rate);
      ctx.textAlign = "right";
      ctx.fillStyle = ink.muted;
      ctx.fillText(`${label} ${plain(rate)} TFLOP/s`, right - 6, place.y(rate) - 8);
    }
    points.forEach((point, i) => {
      const radius = radiusOf(point);
      ctx.globalAlpha = near < 0 || near === i ? 0.72 : 0.2;
      ctx.fillStyle = ink[colourOf(point.bound)];
      ctx.beginPath();
      ctx.arc(place.x(point.x), place.y(point.y), radius, 0, 2 * Math.PI);
      ctx.fill();
      ctx.globalAlpha = 1;
      ctx.strokeStyle = near === i ? ink.ink : ink.paper;
      ctx.lineWidth = near === i ? 2 : 1;
      ctx.stroke();
    });
    ctx.restore();
  };
  const radiusOf = (point) => Math.max(3.5, Math.sqrt(point.ns / whole) * 34);
  const surface = new Surface(400, "Kernels by arithmetic intensity and speed, below the ceilings of the device; arrow keys go from kernel to kernel", draw);
  const { canvas } = surface;
  const readout = h("p", { class: "readout", "aria-live": "polite" });
  const show = (i) => {
    near = i;
    const point = points[i];
    if (point) readout.replaceChildren(h("b", null, point.name), ` · ${point.bound} bound · ${plain(point.x)} FLOP per byte · ${plain(point.y)} TFLOP/s · ${time(point.ns)}, ${share(point.ns / whole)} of the kernels here`);
    else readout.replaceChildren("Point at a kernel; its area is its time.");
    surface.ask();
  };
  canvas.addEventListener("pointermove", (event) => {
    if (!place) return;
    let [best, least] = [-1, 14];
    points.forEach((point, i) => {
      const away = Math.hypot(place.x(point.x) - event.offsetX, place.y(point.y) - event.offsetY) - radiusOf(point);
      if (away < least) [best, least] = [i, Math.max(0, away)];
    });
    if (best !== near) show(best);
    if (best >= 0) showTip(event, short(points[best].name), `${points[best].bound} bound · ${plain(points[best].y)} TFLOP/s · ${time(points[best].ns)}`);
    else hideTip();
  });
  canvas.addEventListener("pointerleave", () => { hideTip(); show(-1); });
  canvas.addEventListener("keydown", (event) => {
    const to = { ArrowRight: near + 1, ArrowDown: near + 1, ArrowLeft: near - 1, ArrowUp: near - 1, Escape: -1 }[event.key];
    if (to === undefined || !points.length) return;
    event.preventDefault();
    show(event.key === "Escape" ? -1 : (to + points.length) % points.length);
  });
  show(-1);
  const without = frame.length - points.length;
  const { node, box: filter } = sortedTable(frame, { order: ["name", "bound", "total_ns", "share", "achieved_tflops", "achieved_gb_per_s", "flops", "bytes"], by: "total_ns", first: 10, search: frame.length > 8 });
  return section("roofline", "Roofline",
    `Under a slope the memory limits, under a flat line the arithmetic; far below both, something else.${tflops.length || slopes.length ? "" : " The peaks of this device are not known, so no ceiling is drawn."}${without ? ` ${grouped.format(without)} kernels of unknown work are only in the table.` : ""}`,
    filter ? [filter] : null,
    points.length ? [h("figure", null, canvas, legend(kinds.map((bound) => [colourOf(bound), `${bound} bound`]))), readout] : h("p", { class: "missing" }, "Of no kernel both FLOPs and bytes are known."), ...node);
}

function boxOf(points, tflops, slopes) {
  const xs = points.map((each) => each.x);
  const ys = [...points.map((each) => each.y), ...tflops.map(([, rate]) => rate)];
  const ridge = tflops.length && slopes.length ? [tflops[0][1] / (slopes[0][1] / 1000)] : [];
  const log = (values, pick) => Math.log10(values.reduce((a, b) => pick(a, b)));
  if (!points.length) return { x0: 0, x1: 1, y0: 0, y1: 1 };
  return { x0: log([...xs, ...ridge], Math.min) - 0.3, x1: log([...xs, ...ridge], Math.max) + 0.6, y0: log(ys, Math.min) - 0.3, y1: log(ys, Math.max) + 0.2 };
}
function axis(ctx, ink, x, y, from, to, label) {
  ctx.fillStyle = ink.line;
  if (x !== null) ctx.fillRect(Math.round(x), from, 1, to - from);
  else ctx.fillRect(from, Math.round(y), to - from, 1);
  ctx.fillStyle = ink.muted;
  ctx.textAlign = x !== null ? "center" : "right";
  ctx.fillText(label, x ?? from - 7, x !== null ? to + 11 : y);
}
function line(ctx, place, x0, y0, x1, y1) {
  ctx.beginPath();
  ctx.moveTo(place.x(x0), place.y(y0));
  ctx.lineTo(place.x(x1), place.y(y1));
  ctx.stroke();
}
