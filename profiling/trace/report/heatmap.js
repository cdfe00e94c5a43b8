// Ranks against steps: which of them are slow, and always or now and then.

function drawHeatMap() {
  if (!steps) return section("ranks", "Ranks", null, null, h("p", { class: "missing" }, data.missing.steps));
  const numbers = [...new Set(steps.values("step"))].sort((a, b) => a - b);
  const place = new Map(numbers.map((each, i) => [each, i]));
  const choices = [{ key: "window_ns", label: "step time" }, ...PARTS].filter((each) => steps.has(each.key));
  let chosen = choices[0];
  let relative = false;
  let cursor = null;

  const cells = () => {
    const values = devices.map((device) => {
      const made = new Float64Array(numbers.length).fill(NaN);
      for (const row of device.rows) made[place.get(steps.at("step", row))] = steps.at(chosen.key, row);
      return made;
    });
    if (!relative) return values;
    const middles = numbers.map((_, i) => {
      const column = values.map((each) => each[i]).filter((each) => !Number.isNaN(each)).sort((a, b) => a - b);
      return column[(column.length - 1) >> 1];
    });
    return values.map((each) => each.map((value, i) => value - middles[i]));
  };
  let values = cells();
  let range = [0, 1];
  const measureRange = () => {
    range = [Infinity, -Infinity];
    for (const row of values) for (const value of row) if (!Number.isNaN(value)) range = [Math.min(range[0], value), Math.max(range[1], value)];
    if (!(range[0] < range[1])) range[1] = range[0] + 1;
  };

  const LABELS = 112;
  const tall = () => Math.max(6, Math.min(24, Math.floor(520 / devices.length)));
  const height = () => devices.length * tall() + 26;
  const pitchOf = (width) => Math.min(72, (width - LABELS - 4) / numbers.length);
  const colourOf = (value) => {
    const ink = colours();
    const at = Math.max(0, Math.min(0.9999, (value - range[0]) / (range[1] - range[0]))) * 3;
    const i = Math.floor(at);
    return mixed(ink[`heat-${i}`], ink[`heat-${i + 1}`], at - i);
  };

  const surface = new Surface(height, "Ranks against steps, coloured by time; arrow keys go from cell to cell", (ctx, width) => {
    const ink = colours();
    const [pitch, high] = [pitchOf(width), tall()];
    const gap = pitch > 8 && high > 8 ? 1 : 0;
    devices.forEach((device, y) => {
      if (high >= 12 || y % Math.ceil(13 / high) === 0) {
        ctx.fillStyle = ink.muted;
        ctx.textAlign = "right";
        ctx.fillText(device.label, LABELS - 8, y * high + high / 2);
      }
      numbers.forEach((_, x) => {
        const value = values[y][x];
        if (Number.isNaN(value)) return;
        ctx.fillStyle = colourOf(value);
        ctx.fillRect(LABELS + x * pitch, y * high, pitch - gap, high - gap);
      });
    });
    ctx.textAlign = "center";
    ctx.fillStyle = ink.muted;
    const every = Math.max(1, Math.ceil(44 / pitch));
    for (let i = 0; i < numbers.length; i += every) ctx.fillText(String(numbers[i]), LABELS + (i + 0.5) * pitch, devices.length * high + 13);
    if (cursor) {
      ctx.strokeStyle = ink.exposed;
      ctx.lineWidth = 2;
      ctx.strokeRect(LABELS + cursor.x * pitch, cursor.y * high, pitch - gap, high - gap);
    }
  });
  const { canvas } = surface;
  const readout = h("p", { class: "readout", "aria-live": "polite" });
  const ramp = h("span", { class: "ramp" });
  const signed = (value) => `${relative && value > 0 ? "+" : ""}${time(value)}`;
  const say = () => {
    if (!cursor) {
      readout.replaceChildren("Point at a cell; a click shows that step above.");
      return;
    }
    const value = values[cursor.y][cursor.x];
    readout.replaceChildren(h("b", null, `${devices[cursor.y].label}, step ${numbers[cursor.x]}`),
      `: ${chosen.label} ${Number.isNaN(value) ? "not recorded" : signed(value)}${relative ? " against the median rank" : ""}`);
  };
  const refresh = () => {
    values = cells();
    measureRange();
    ramp.replaceChildren(signed(range[0]), h("i"), signed(range[1]));
    say();
    surface.ask();
  };
  const move = (to) => {
    cursor = to && to.x >= 0 && to.x < numbers.length && to.y >= 0 && to.y < devices.length ? to : null;
    say();
    surface.ask();
  };
  const under = (event) => ({ x: Math.floor((event.offsetX - LABELS) / pitchOf(canvas.clientWidth)), y: Math.floor(event.offsetY / tall()) });
  const choose = () => {
    if (!cursor) return;
    const at = devices[cursor.y].rows.findIndex((row) => steps.at("step", row) === numbers[cursor.x]);
    look({ device: cursor.y, at });
  };
  canvas.addEventListener("pointermove", (event) => move(under(event)));
  canvas.addEventListener("pointerleave", () => move(null));
  canvas.addEventListener("click", choose);
  canvas.addEventListener("keydown", (event) => {
    const [dx, dy] = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key] ?? [0, 0];
    if (dx || dy) {
      event.preventDefault();
      const from = cursor ?? { x: 0, y: 0 };
      move({ x: Math.max(0, Math.min(numbers.length - 1, from.x + dx)), y: Math.max(0, Math.min(devices.length - 1, from.y + dy)) });
    } else if (event.key === "Enter") choose();
  });
  const pick = h("select", { name: "colour", "aria-label": "What the colour stands for", on: { change: (event) => { chosen = choices[event.target.value]; refresh(); } } },
    choices.map((each, i) => h("option", { value: String(i) }, each.label)));
  const against = h("button", { type: "button", "aria-pressed": "false", on: { click: () => {
    relative = !relative;
    against.setAttribute("aria-pressed", String(relative));
    refresh();
  } } }, "Against the median rank");
  refresh();
  return section("ranks", "Ranks",
    "A row that stands out is a slow rank, a column that stands out a slow step, a lone cell an accident.",
    [ramp, h("label", null, "Colour", pick), devices.length > 2 ? against : null].filter(Boolean),
    h("div", { class: "heat-scroll" }, canvas), readout, ...drawStragglers());
}
