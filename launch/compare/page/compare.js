// The page of a comparison: its sections in order, the answer first.

/** A part of the page; what cannot be drawn says so, and leaves the others as they are. */
function drawn(draw) {
  try {
    return draw();
  } catch (error) {
    return section(draw.name, draw.name.replace("draw", ""), null, null, h("p", { class: "missing" }, `This part could not be drawn: ${error}`));
  }
}

function main() {
  const content = document.getElementById("content");
  content.append(h("h1", null, data.title), data.subtitle ? h("p", { class: "subtitle" }, data.subtitle) : "");
  const draws = [drawAnswer, data.waterfall && drawWaterfall, data.forest && drawForest, data.left_out && drawLeftOut, data.table && drawTable, data.notebook && drawNotebook,
    drawPairs, drawParts, drawLosses, drawSameness, drawFailures, drawSegments, data.recipes && drawRecipes, drawEnvironment, drawReproduce, data.notes.length ? drawNotes : null];
  const sections = draws.filter(Boolean).map(drawn).filter(Boolean);
  content.append(...sections);
  watchSections(sections);
  watchScheme();
  document.documentElement.dataset.ready = "yes";
}
main();
