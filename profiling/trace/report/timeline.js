// The timeline: what ran when, on streams and threads of the ranks that were chosen.

let goToStep = () => {};

const FEW_LANES = 8;
const ROW = { device: 22, critical: 18, host: 15 };

function drawTimeline() {
  const frame = frames.timeline;
  if (!frame) return section("timeline", "Timeline", null, null, h("p", { class: "missing" }, data.missing.timeline));
  const tracks = tracksOf(frame, frames.critical, frames.across);
  const severalRanks = new Set(tracks.map((each) => each.rank).filter((each) => each !== null)).size > 1;
  for (const each of tracks) each.open = each.lanes.length <= FEW_LANES;

  // ---- time
  const marks = marksOf(frame);
  const extent = extentOf(tracks, marks);
  const shown = { from: extent[0], to: extent[1] };
  const LABELS = 204;
  let width = 800;
  const scaleNow = () => (width - LABELS) / (shown.to - shown.from);
  const clamp = (from, to) => {
    const span = Math.max(50, Math.min(to - from, extent[1] - extent[0]));
    const begin = Math.max(extent[0], Math.min(from, extent[1] - span));
    shown.from = begin;
    shown.to = begin + span;
    ask();
  };
  const zoom = (factor, at) => clamp(at - (at - shown.from) * factor, at + (shown.to - at) * factor);
  const pan = (part) => clamp(shown.from + part * (shown.to - shown.from), shown.to + part * (shown.to - shown.from));
  const timeAt = (x) => shown.from + (x - LABELS) / scaleNow();

  // ---- what is marked
  let selected = null; // { track, lane, i }
  let band = null; // { a, b } times that are measured
  let found = null; // { text, list: [{ track, lane, i }], by lane }
  let hover = null;

  const layout = () => {
    let y = 4;
    for (const track of tracks) {
      track.row = track.label.endsWith("annotations") ? ROW.host : ROW[track.place] ?? ROW.host;
      track.y = y;
      track.shownLanes = track.open ? track.lanes : track.lanes.slice(0, FEW_LANES);
      y += track.shownLanes.length * track.row + 7;
    }
    return y + 4;
  };
  const spacer = h("div");
  const scroller = h("div", { class: "lanes" });
  const heightOfView = () => Math.max(60, Math.min(scroller.clientHeight || 460, layout()));

  const palette = () => {
    const ink = colours();
    const words = new Map();
    return (kind, variant) => {
      const key = `${kind} ${variant}`;
      let made = words.get(key);
      if (!made) {
        const base = ink[COLOUR_OF_KIND[kind] ?? "faint"];
        made = variant < 3 ? mixed(base, variant === 1 ? ink.ink : ink.paper, [0, 0.12, 0.14][variant]) : mixed(ink.paper, base, [0.3, 0.5, 0.7, 0.85, 1][variant - 3]);
        words.set(key, made);
      }
      return made;
    };
  };

  const drawLanes = (ctx, w, height) => {
    const began = performance.now();
    width = w;
    const ink = colours();
    const colourOf = palette();
    const scale = scaleNow();
    const top = scroller.scrollTop;
    const fills = new Map(); // colour -> [x, y, w, h, ...]
    const labels = [];
    let drawn = 0;
    const put = (colour, x, y, broad, tall) => {
      let list = fills.get(colour);
      if (!list) fills.set(colour, (list = []));
      list.push(x, y, broad, tall);
      drawn += 1;
    };
    ctx.fillStyle = ink.line;
    for (const mark of marks) {
      const x = LABELS + (mark.start - shown.from) * scale;
      if (x >= LABELS && x <= w) ctx.fillRect(Math.round(x), 0, 1, height);
    }
    for (const track of tracks) {
      const faint = found !== null;
      track.shownLanes.forEach((lane, depth) => {
        const y = track.y + depth * track.row - top;
        if (y > height || y + track.row < 0) return;
        const kinds = track.frame.words("kind");
        const kindOf = (i) => (track.place === "critical" ? "critical" : kinds[lane.kind[i]]);
        const tall = track.row - 2;
        let run = null;
        const flush = () => { if (run) put(run.colour, run.x, y, run.broad, tall); run = null; };
        lane.visit(shown.from, shown.to, scale, (i, x0, x1) => {
          flush();
          const left = LABELS + Math.max(-2, x0);
          const right = LABELS + Math.min(w - LABELS + 2, x1);
          const broad = Math.max(0.75, right - left - (right - left > 4 ? 0.75 : 0));
          put(faint ? colourOf(kindOf(i), 3) : colourOf(kindOf(i), lane.name[i] % 3), left, y, broad, tall);
          if (broad > 30 && tall > 9) labels.push(track, lane, i, Math.max(left, LABELS), y, right - Math.max(left, LABELS));
        }, (column, part, i) => {
          const colour = colourOf(kindOf(i), faint ? 3 : 3 + Math.min(4, Math.floor(part * 5)));
          if (column < 0) return;
          const x = LABELS + column;
          if (run && run.colour === colour && run.x + run.broad === x) run.broad += 1;
          else { flush(); run = { colour, x, broad: 1 }; }
        });
        flush();
      });
    }
    for (const [colour, list] of fills) {
      ctx.fillStyle = colour;
      ctx.beginPath();
      for (let i = 0; i < list.length; i += 4) ctx.rect(list[i], list[i + 1], list[i + 2], list[i + 3]);
      ctx.fill();
    }
    if (found) drawFound(ctx, top, scale, height);
    for (let i = 0; i < labels.length; i += 6) drawName(ctx, ink, ...labels.slice(i, i + 6));
    drawMarked(ctx, ink, scale, top, height);
    drawGutter(ctx, ink, top, height);
    Object.assign(surface.canvas.dataset, {
      from: shown.from.toFixed(0), to: shown.to.toFixed(0), drawn: String(drawn), frameMs: (performance.now() - began).toFixed(2),
    });
  };

  const drawName = (ctx, ink, track, lane, i, x, y, room) => {
    const letters = Math.floor((room - 8) / 5.9);
    if (letters < 3) return;
    const name = short(track.frame.words("name")[lane.name[i]] ?? "");
    ctx.textAlign = "left";
    const kind = track.place === "critical" ? "critical" : track.frame.words("kind")[lane.kind[i]];
    ctx.fillStyle = found ? ink.muted : inkOn(ink[COLOUR_OF_KIND[kind] ?? "faint"]);
    ctx.fillText(name.length > letters ? `${name.slice(0, letters - 1)}…` : name, x + 4, y + (track.row - 2) / 2 + 0.5);
  };

  const drawFound = (ctx, top, scale, height) => {
    ctx.fillStyle = colours().exposed;
    ctx.beginPath();
    for (const { track, lane, i } of found.list) {
      const depth = track.shownLanes.indexOf(lane);
      const y = track.y + depth * track.row - top;
      if (depth < 0 || y > height || y < -track.row || lane.end[i] < shown.from || lane.start[i] > shown.to) continue;
      const x0 = LABELS + Math.max(-2, (lane.start[i] - shown.from) * scale);
      const x1 = LABELS + Math.min(width, (lane.end[i] - shown.from) * scale);
      ctx.rect(x0, y, Math.max(1.5, x1 - x0), track.row - 2);
    }
    ctx.fill();
  };

  const drawMarked = (ctx, ink, scale, top, height) => {
    for (const [mark, colour, broad] of [[hover, ink.muted, 1], [selected, ink.ink, 2]]) {
      if (!mark) continue;
      const depth = mark.track.shownLanes.indexOf(mark.lane);
      if (depth < 0) continue;
      const x0 = LABELS + (mark.lane.start[mark.i] - shown.from) * scale;
      const x1 = LABELS + (mark.lane.end[mark.i] - shown.from) * scale;
      if (x1 < LABELS || x0 > width) continue;
      ctx.strokeStyle = colour;
      ctx.lineWidth = broad;
      ctx.strokeRect(Math.max(LABELS - 3, x0), mark.track.y + depth * mark.track.row - top, Math.max(2, Math.min(width + 3, x1) - Math.max(LABELS - 3, x0)), mark.track.row - 2);
    }
    if (band) {
      const [a, b] = [band.a, band.b].sort((x, y) => x - y).map((each) => LABELS + (each - shown.from) * scale);
      ctx.globalAlpha = 0.16;
      ctx.fillStyle = ink.accent;
      ctx.fillRect(a, 0, b - a, height);
      ctx.globalAlpha = 1;
      ctx.fillStyle = ink.accent;
      ctx.textAlign = "center";
      ctx.fillText(time(Math.abs(band.b - band.a)), (a + b) / 2, height - 9);
    }
  };

  const drawGutter = (ctx, ink, top, height) => {
    ctx.fillStyle = ink.paper;
    ctx.fillRect(0, 0, LABELS - 1, height);
    ctx.fillStyle = ink.line;
    ctx.fillRect(LABELS - 1, 0, 1, height);
    ctx.textAlign = "left";
    for (const track of tracks) {
      const y = track.y - top;
      const tall = track.shownLanes.length * track.row;
      if (y > height || y + tall < 0) continue;
      ctx.fillStyle = ink.line;
      ctx.fillRect(0, Math.round(y + tall + 2), width, 1);
      const label = severalRanks && track.rank !== null ? `${track.rank} · ${track.label}` : track.label;
      ctx.fillStyle = track.place === "host" ? ink.muted : ink.ink;
      ctx.fillText(label.length > 32 ? `${label.slice(0, 31)}…` : label, 10, Math.max(y, 0) + Math.min(track.row, tall) / 2 + 0.5);
      const folded = track.lanes.length - track.shownLanes.length;
      if (track.lanes.length > FEW_LANES && y + 2 * track.row < height) {
        ctx.fillStyle = ink.accent;
        ctx.fillText(folded ? `▸ ${folded} deeper` : "▾ fold", 10, Math.max(y, 0) + track.row * 1.5 + 2);
      }
    }
  };

  // ---- ruler and overview
  const drawRuler = (ctx, w, height) => {
    width = w;
    const ink = colours();
    const scale = scaleNow();
    const span = shown.to - shown.from;
    const step = ticks(span, Math.max(2, (w - LABELS) / 110))[1] ?? span;
    const zero = extent[0];
    const [unit, size] = unitOf(Math.max(step, 1));
    const decimals = Math.max(0, Math.ceil(-Math.log10(step / size) - 1e-9));
    ctx.fillStyle = ink.muted;
    ctx.textAlign = "left";
    for (let i = Math.ceil((shown.from - zero) / step); i * step <= shown.to - zero; i++) {
      const x = LABELS + (i * step + zero - shown.from) * scale;
      ctx.fillStyle = ink.line;
      ctx.fillRect(Math.round(x), height - 6, 1, 6);
      ctx.fillStyle = ink.muted;
      ctx.fillText(`${grouped.format(Math.trunc(i * step / size))}${decimals ? `.${((i * step / size) % 1).toFixed(decimals).slice(2)}` : ""} ${unit}`, x + 4, height - 9);
    }
    ctx.fillStyle = ink.accent;
    for (const mark of marks) {
      const x = LABELS + (mark.start - shown.from) * scale;
      if (x >= LABELS - 1 && x < w) ctx.fillText(`step ${mark.step}`, x + 4, 8);
    }
    ctx.fillStyle = ink.paper;
    ctx.fillRect(0, 0, LABELS - 1, height);
    ctx.fillStyle = ink.muted;
    ctx.fillText(`${time(span)} shown`, 10, height - 9);
  };
  const drawOverview = (ctx, w, height) => {
    const ink = colours();
    const colourOf = palette();
    const scale = (w - LABELS) / (extent[1] - extent[0]);
    const rows = tracks.filter((each) => each.place === "device" && !each.label.endsWith("annotations"));
    const chosen = (rows.length ? rows : tracks).slice(0, 8);
    const tall = (height - 8) / chosen.length;
    chosen.forEach((track, y) => {
      const kinds = track.frame.words("kind");
      const put = (lane, x, broad, part, i) => {
        ctx.fillStyle = colourOf(kinds[lane.kind[i]], 3 + Math.min(4, Math.floor(part * 5)));
        ctx.fillRect(LABELS + Math.max(0, x), 4 + y * tall, broad, Math.max(1, tall - 1));
      };
      for (const lane of track.lanes.slice(0, 2)) {
        lane.visit(extent[0], extent[1], scale, (i, x0, x1) => put(lane, x0, x1 - Math.max(0, x0), 1, i), (column, part, i) => put(lane, column, 1, part, i));
      }
    });
    const [a, b] = [shown.from, shown.to].map((each) => LABELS + (each - extent[0]) * scale);
    ctx.globalAlpha = 0.72;
    ctx.fillStyle = ink.paper;
    ctx.fillRect(LABELS, 0, a - LABELS, height);
    ctx.fillRect(b, 0, w - b, height);
    ctx.globalAlpha = 1;
    ctx.strokeStyle = ink.accent;
    ctx.lineWidth = 1;
    ctx.strokeRect(a + 0.5, 0.5, Math.max(2, b - a - 1), height - 1);
    ctx.fillStyle = ink.muted;
    ctx.textAlign = "left";
    ctx.fillText("overview", 10, height / 2);
  };
  const surface = new Surface(heightOfView, "Timeline of streams and threads", drawLanes);
  const ruler = new Surface(30, "Time", drawRuler);
  const overview = new Surface(34, "Overview of the whole; drag to move the range that is shown", drawOverview);
  ruler.canvas.removeAttribute("tabindex");
  scroller.style.height = `${Math.max(120, Math.min(460, layout()))}px`;
  const ask = () => { spacer.style.height = `${Math.max(0, layout() - heightOfView())}px`; surface.ask(); ruler.ask(); overview.ask(); };
  scroller.append(surface.canvas, spacer);
  scroller.addEventListener("scroll", () => surface.ask());
  new ResizeObserver(ask).observe(scroller);

  const part = { tracks, shown, extent, marks, LABELS, surface, overview, scroller, zoom, pan, clamp, timeAt, scaleNow, ask, layout,
    get selected() { return selected; }, set selected(value) { selected = value; },
    get hover() { return hover; }, set hover(value) { hover = value; },
    get band() { return band; }, set band(value) { band = value; },
    get found() { return found; }, set found(value) { found = value; } };
  return handleTimeline(part, h("div", { class: "timeline" }, h("div", { class: "overview" }, overview.canvas), ruler.canvas, scroller));
}

/** Steps that lie in the timeline, from the marks of the profiler. */
function marksOf(frame) {
  const words = frame.words("name");
  const numbers = words.map((word) => (word?.startsWith(prefixes.step) ? Number(word.slice(prefixes.step.length)) : NaN));
  const [names, starts, durs] = [frame.values("name"), frame.values("start_ns"), frame.values("dur_ns")];
  const made = [];
  if (numbers.some((each) => !Number.isNaN(each))) {
    for (let row = 0; row < frame.length; row++) {
      if (!Number.isNaN(numbers[names[row]]) && frame.at("place", row) !== "device") made.push({ step: numbers[names[row]], rank: frame.at("rank", row), start: starts[row], end: starts[row] + durs[row] });
    }
  }
  return made;
}

/** From the first to the last of the device's events and the steps; a call that lasts the whole run does not stretch it. */
function extentOf(tracks, marks) {
  let [from, to] = [Infinity, -Infinity];
  const own = tracks.filter((each) => each.place === "device");
  for (const track of own.length ? own : tracks) {
    for (const lane of track.lanes) {
      from = Math.min(from, lane.start[0]);
      to = Math.max(to, lane.end[lane.length - 1]);
    }
  }
  if (own.length) for (const mark of marks) [from, to] = [Math.min(from, mark.start), Math.max(to, mark.end)];
  return to > from ? [from, to] : [from, from + 1000];
}
