// The timeline under the hand: wheel, drag, keys, search, and what is said about the event that is looked at.

function handleTimeline(line, chart) {
  const { tracks, shown, extent, marks, LABELS, surface, overview, scroller, zoom, pan, clamp, timeAt, scaleNow, ask, layout } = line;
  const { canvas } = surface;
  canvas.setAttribute("role", "application");
  const readout = h("p", { class: "readout", id: "event", "aria-live": "polite" });
  canvas.setAttribute("aria-describedby", "event");
  const severalRanks = new Set(tracks.map((each) => each.rank).filter((each) => each !== null)).size > 1;

  const describe = ({ track, lane, i }) => {
    const kind = track.place === "critical" ? track.frame.at("category", lane.rows[i]) : track.frame.words("kind")[lane.kind[i]];
    return {
      name: track.frame.words("name")[lane.name[i]] ?? "",
      text: `${kind ? `${kind} · ` : ""}${time(lane.end[i] - lane.start[i])} · at ${time(lane.start[i] - extent[0])} · ${severalRanks ? `rank ${track.rank ?? track.frame.at("rank", lane.rows[i])} · ` : ""}${track.label}`,
    };
  };
  const sums = new Map(); // of a track by name: what the same name takes there, counted when first asked for
  const sumOf = ({ track, lane, i }) => {
    if (!sums.has(track)) {
      const made = new Map();
      for (const each of track.lanes) {
        for (let j = 0; j < each.length; j++) {
          const [count, ns] = made.get(each.name[j]) ?? [0, 0];
          made.set(each.name[j], [count + 1, ns + each.end[j] - each.start[j]]);
        }
      }
      sums.set(track, made);
    }
    return sums.get(track).get(lane.name[i]);
  };
  const say = () => {
    const { selected, found, band } = line;
    if (selected) {
      const { name, text } = describe(selected);
      const [count, ns] = sumOf(selected);
      readout.replaceChildren(h("b", null, name), ` · ${text} · ${grouped.format(count)} of this name here, ${time(ns)} in all`);
    } else if (band) readout.replaceChildren(h("b", null, time(Math.abs(band.b - band.a))), " measured");
    else if (found) {
      const ns = found.list.reduce((sum, { lane, i }) => sum + lane.end[i] - lane.start[i], 0);
      readout.replaceChildren(h("b", null, grouped.format(found.list.length)), ` events match “${found.text}”, ${time(ns)} in all`);
    } else readout.replaceChildren("Click an event to read it.");
  };
  const select = (mark, reveal) => {
    line.selected = mark;
    if (mark && reveal) {
      const { lane, i, track } = mark;
      const span = Math.max(shown.to - shown.from, 1.2 * (lane.end[i] - lane.start[i]));
      if (lane.start[i] < shown.from || lane.end[i] > shown.to) {
        const middle = (lane.start[i] + lane.end[i]) / 2;
        clamp(middle - span / 2, middle + span / 2);
      }
      const y = track.y + Math.max(0, track.shownLanes.indexOf(lane)) * track.row;
      if (y < scroller.scrollTop || y + track.row > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = y - scroller.clientHeight / 2;
    }
    say();
    ask();
  };
  const zoomTo = ({ lane, i }) => {
    const [a, b] = [lane.start[i], lane.end[i]];
    const margin = Math.max(20, (b - a) * 0.15);
    clamp(a - margin, b + margin);
  };

  // ---- pointer
  const under = (event) => {
    const y = event.offsetY + scroller.scrollTop;
    const track = tracks.find((each) => y >= each.y && y < each.y + each.shownLanes.length * each.row + 5);
    if (!track) return null;
    if (event.offsetX < LABELS) return { track, lane: null, i: -1 };
    const lane = track.shownLanes[Math.min(track.shownLanes.length - 1, Math.floor((y - track.y) / track.row))];
    const i = lane.find(timeAt(event.offsetX), 3 / scaleNow());
    return i < 0 ? null : { track, lane, i };
  };
  let held = null; // where the pointer went down
  canvas.addEventListener("wheel", (event) => {
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      const amount = event.deltaMode === 1 ? event.deltaY * 16 : event.deltaY;
      zoom(Math.exp(Math.max(-240, Math.min(240, amount)) * 0.0035), timeAt(Math.max(LABELS, event.offsetX)));
    } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      pan((event.deltaX || event.deltaY) / (canvas.clientWidth - LABELS));
    } // a plain wheel scrolls, as everywhere on the page
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    held = { x: event.offsetX, y: event.clientY, from: shown.from, to: shown.to, top: scroller.scrollTop, measures: event.shiftKey && event.offsetX > LABELS, moved: false };
    if (held.measures) line.band = { a: timeAt(event.offsetX), b: timeAt(event.offsetX) };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (held) {
      const dx = event.offsetX - held.x;
      if (Math.abs(dx) > 3 || Math.abs(event.clientY - held.y) > 3) held.moved = true;
      if (held.measures) line.band = { ...line.band, b: timeAt(event.offsetX) };
      else if (held.moved) {
        const shift = -dx / scaleNow();
        clamp(held.from + shift, held.to + shift);
        scroller.scrollTop = held.top - (event.clientY - held.y);
      }
      hideTip();
      ask();
      return;
    }
    const mark = under(event);
    const changed = mark?.lane !== line.hover?.lane || mark?.i !== line.hover?.i;
    line.hover = mark?.lane ? mark : null;
    canvas.style.cursor = mark && !mark.lane && mark.track.lanes.length > FEW_LANES ? "pointer" : "";
    if (mark?.lane) {
      const { name, text } = describe(mark);
      showTip(event, name.length > 240 ? `${name.slice(0, 240)}…` : name, text);
    } else if (mark) showTip(event, mark.track.label, mark.track.rank === null ? "all ranks" : `rank ${mark.track.rank} · ${mark.track.lanes.length} deep`);
    else hideTip();
    if (changed) surface.ask();
  });
  canvas.addEventListener("pointerup", (event) => {
    const was = held;
    held = null;
    if (!was || was.moved) { say(); return; }
    line.band = null;
    const mark = under(event);
    if (mark && !mark.lane) {
      if (mark.track.lanes.length > FEW_LANES) mark.track.open = !mark.track.open;
      layout();
      ask();
    } else select(mark, false);
  });
  canvas.addEventListener("dblclick", (event) => { const mark = under(event); if (mark?.lane) zoomTo(mark); });
  canvas.addEventListener("pointerleave", () => { line.hover = null; hideTip(); surface.ask(); });

  let dragging = false;
  const centre = (event) => {
    const at = extent[0] + (event.offsetX - LABELS) / (overview.canvas.clientWidth - LABELS) * (extent[1] - extent[0]);
    const half = (shown.to - shown.from) / 2;
    clamp(at - half, at + half);
  };
  overview.canvas.addEventListener("pointerdown", (event) => { dragging = true; overview.canvas.setPointerCapture(event.pointerId); centre(event); });
  overview.canvas.addEventListener("pointermove", (event) => { if (dragging) centre(event); });
  overview.canvas.addEventListener("pointerup", () => { dragging = false; });

  // ---- keys
  const nextOf = (direction) => {
    const { selected, found } = line;
    if (found?.list.length) {
      const at = selected ? found.list.findIndex((each) => each.lane === selected.lane && each.i === selected.i) : -1;
      return found.list[(Math.max(at, direction > 0 ? -1 : 0) + direction + found.list.length) % found.list.length];
    }
    if (!selected) {
      const track = tracks.find((each) => each.place === "device") ?? tracks[0];
      const i = Math.min(track.lanes[0].length - 1, firstFrom(track.lanes[0].start, shown.from, 0, track.lanes[0].length));
      return { track, lane: track.lanes[0], i };
    }
    return { ...selected, i: Math.max(0, Math.min(selected.lane.length - 1, selected.i + direction)) };
  };
  const middle = () => (line.selected ? Math.max(shown.from, Math.min(shown.to, line.selected.lane.start[line.selected.i])) : (shown.from + shown.to) / 2);
  const fit = () => clamp(extent[0], extent[1]);
  const keys = {
    w: () => zoom(0.7, middle()), "+": () => zoom(0.7, middle()), "=": () => zoom(0.7, middle()),
    s: () => zoom(1 / 0.7, middle()), "-": () => zoom(1 / 0.7, middle()),
    a: () => pan(-0.15), ArrowLeft: () => pan(-0.15), d: () => pan(0.15), ArrowRight: () => pan(0.15),
    ArrowUp: () => { scroller.scrollTop -= 60; }, ArrowDown: () => { scroller.scrollTop += 60; },
    0: fit, Home: fit, ",": () => select(nextOf(-1), true), ".": () => select(nextOf(1), true),
    Enter: () => { if (line.selected) zoomTo(line.selected); },
    Escape: () => { line.band = null; select(null); },
    "/": () => box.focus(),
  };
  const onKey = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const act = keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  };
  canvas.addEventListener("keydown", onKey);
  overview.canvas.addEventListener("keydown", onKey);

  // ---- search
  const search = () => {
    const text = box.value.trim().toLowerCase();
    if (!text) line.found = null;
    else {
      const list = [];
      const fits = new Map();
      for (const track of tracks) {
        if (!fits.has(track.frame)) fits.set(track.frame, track.frame.words("name").map((word) => word !== null && word.toLowerCase().includes(text)));
        const wanted = fits.get(track.frame);
        for (const lane of track.lanes) for (let i = 0; i < lane.length; i++) if (wanted[lane.name[i]]) list.push({ track, lane, i });
      }
      line.found = { text: box.value.trim(), list };
    }
    line.selected = null;
    say();
    ask();
  };
  const box = h("input", { type: "search", name: "find", placeholder: "Find events", "aria-label": "Find events by name", on: { input: search, keydown: (event) => {
    if (event.key === "Enter" && line.found?.list.length) select(nextOf(event.shiftKey ? -1 : 1), true);
    if (event.key === "Escape") { box.value = ""; search(); canvas.focus(); }
  } } });
  const button = (text, title, act) => h("button", { type: "button", title, "aria-label": title, on: { click: act } }, text);
  const stepsHere = [...new Set(marks.map((each) => each.step))].sort((a, b) => a - b);
  const goTo = (rank, step) => {
    const mark = marks.find((each) => each.step === step && each.rank === rank) ?? marks.find((each) => each.step === step);
    if (mark) clamp(mark.start, mark.end);
    return Boolean(mark);
  };
  goToStep = (rank, step) => { if (goTo(rank, step)) say(); };
  const pick = stepsHere.length > 1 ? h("select", { name: "step", "aria-label": "Step", on: { change: (event) => (event.target.value ? goTo(NaN, Number(event.target.value)) : fit()) } },
    h("option", { value: "" }, "all steps"), stepsHere.map((each) => h("option", { value: String(each) }, `step ${each}`))) : null;

  say();
  const numEvents = frames.timeline.length;
  const kinds = [...new Set(frames.timeline.words("kind").slice(1))].filter((kind) => COLOUR_OF_KIND[kind]);
  if (frames.critical || frames.across) kinds.push("critical");
  return section("timeline", "Timeline", null,
    [h("span", { class: "quiet number" }, `${grouped.format(numEvents)} events`), pick, box, button("−", "Zoom out", keys.s), button("+", "Zoom in", keys.w), button("Fit", "Show everything", fit)].filter(Boolean),
    chart, readout, legend(kinds.map((kind) => [COLOUR_OF_KIND[kind], kind === "critical" ? "critical path" : kind === "memory" ? "copies" : kind])),
    h("p", { class: "hint" }, h("kbd", null, "Ctrl"), " + wheel zooms, drag pans, ", h("kbd", null, "Shift"), " + drag measures, double click zooms to an event. With the keyboard: ",
      ["W", "S"].map((key) => h("kbd", null, key)), " zoom, ", ["A", "D"].map((key) => h("kbd", null, key)), " pan, ", [",", "."].map((key) => h("kbd", null, key)), " go from event to event, ",
      h("kbd", null, "Enter"), " zooms to it, ", h("kbd", null, "0"), " shows everything, ", h("kbd", null, "/"), " finds."));
}
