// The events of the timeline as lanes in which no two overlap, so that a range of time is a range of places in an array.

/** First place from `from` on whose value is not below `wanted`; the values increase. */
function firstFrom(values, wanted, from, to) {
  let [low, high] = [from, to];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}

class Lane {
  constructor(rows, frame) {
    const [starts, durs, names, kinds] = ["start_ns", "dur_ns", "name", "kind"].map((name) => frame.values(name));
    const size = rows.length;
    this.rows = rows;
    this.start = new Float64Array(size);
    this.end = new Float64Array(size);
    this.busy = new Float64Array(size + 1); // before each event
    this.name = new Uint32Array(size);
    this.kind = new Uint8Array(size);
    for (let i = 0; i < size; i++) {
      const row = rows[i];
      this.start[i] = starts[row];
      this.end[i] = starts[row] + durs[row];
      this.busy[i + 1] = this.busy[i] + durs[row];
      this.name[i] = names[row];
      this.kind[i] = kinds ? kinds[row] : 0;
    }
  }
  get length() { return this.rows.length; }

  /**
   * Calls for all that shows between two times, at `scale` pixels a nanosecond: `box(i, x0, x1)` for an event that is at
   * least a pixel wide, `smear(column, part, i)` for those that share a column of pixels, of which `part` is covered.
   * Costs steps for pixels, not for events: what starts in a column is skipped by a search.
   */
  visit(from, to, scale, box, smear) {
    const { start, end, busy } = this;
    const last = firstFrom(start, to, 0, start.length);
    let i = firstFrom(end, from, 0, last);
    while (i < last) {
      const x0 = (start[i] - from) * scale;
      const x1 = (end[i] - from) * scale;
      if (x1 - x0 >= 1) {
        box(i, x0, x1);
        i += 1;
        continue;
      }
      const column = Math.floor(x0);
      let next = firstFrom(start, from + (column + 1) / scale, i + 1, last);
      if (next - 1 > i && (end[next - 1] - start[next - 1]) * scale >= 1) next -= 1;
      let longest = i;
      const stride = Math.max(1, (next - i) >> 3);
      for (let j = i; j < next; j += stride) if (end[j] - start[j] > end[longest] - start[longest]) longest = j;
      smear(column, Math.min(1, (busy[next] - busy[i]) * scale), longest);
      i = next;
    }
  }
  /** The event at a time, or the nearest one within `slack`; -1 for none. */
  find(at, slack) {
    const next = firstFrom(this.start, at, 0, this.length);
    let best = -1;
    let distance = slack;
    for (const i of [next - 1, next]) {
      if (i < 0 || i >= this.length) continue;
      const away = Math.max(0, this.start[i] - at, at - this.end[i]);
      if (away <= distance) [best, distance] = [i, away];
    }
    return best;
  }
}

/** Rows of a track, which stand by start and containing ones first, spread over as many lanes as they are deep. */
function spread(frame, first, end) {
  const [starts, durs] = [frame.values("start_ns"), frame.values("dur_ns")];
  const lanes = [];
  const open = []; // ends of the events that the next one may lie in
  for (let row = first; row < end; row++) {
    while (open.length && open[open.length - 1] <= starts[row]) open.pop();
    (lanes[open.length] ??= []).push(row);
    open.push(starts[row] + durs[row]);
  }
  return lanes.map((rows) => new Lane(rows, frame));
}

/** Tracks in the order of the table, each with its lanes; the critical path of a rank goes first, that of the job before all. */
function tracksOf(frame, critical, across) {
  const [ranks, labels] = [frame.values("rank"), frame.values("track")];
  const places = frame.values("place");
  const made = [];
  for (let row = 0; row < frame.length; ) {
    let end = row + 1;
    while (end < frame.length && ranks[end] === ranks[row] && labels[end] === labels[row] && (!places || places[end] === places[row])) end++;
    made.push({ rank: ranks[row], place: frame.at("place", row) ?? "host", label: frame.at("track", row) ?? "", lanes: spread(frame, row, end), frame });
    row = end;
  }
  const byTime = (table) => {
    const [starts, durs] = [table.values("start_ns"), table.values("dur_ns")];
    return Array.from({ length: table.length }, (_, i) => i).sort((a, b) => starts[a] - starts[b] || durs[b] - durs[a]);
  };
  if (critical) {
    const order = byTime(critical);
    const own = critical.values("rank");
    for (const rank of [...new Set(made.map((each) => each.rank))]) {
      const rows = order.filter((row) => (own ? own[row] === rank : rank === made[0].rank));
      if (rows.length) made.splice(made.findIndex((each) => each.rank === rank), 0, { rank, place: "critical", label: "critical path", lanes: [new Lane(rows, critical)], frame: critical });
    }
  }
  if (across) made.unshift({ rank: null, place: "critical", label: "critical path of all ranks", lanes: [new Lane(byTime(across), across)], frame: across });
  return made;
}
