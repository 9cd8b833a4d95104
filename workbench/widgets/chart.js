// The title of a chart and two small buttons: its picture, by plotly's own button for it, and its figures.
function save(name, text) {
  const link = document.createElement("a");
  // The mark tells spreadsheets that the text is UTF-8.
  link.href = URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// Plotly draws before the cell has a width, 700 pixels then, and later listens to the window alone.
// A change of size before there are traces would leave the plot without them.
// Where there are none, it is drawn when it says so.
const DRAWN = ["trace", "slice", "heatmaplayer image", "annotation"]
  .map((x) => `.js-plotly-plot .${x}`)
  .join();

function asWideAsTheCell(el) {
  let width = 0;
  let waiting = 0;
  const look = () => {
    const box = el.closest(".wb-chart");
    if (!box || box.clientWidth === width || !box.querySelector(DRAWN)) return;
    width = box.clientWidth;
    clearTimeout(waiting);
    waiting = setTimeout(() => window.dispatchEvent(new Event("resize")), 300);
  };
  const sizes = new ResizeObserver(look);
  const nodes = new MutationObserver(look);
  requestAnimationFrame(() => {
    const box = el.closest(".wb-chart");
    if (!box) return;
    sizes.observe(box);
    nodes.observe(box, { childList: true, subtree: true });
  });
  return () => {
    clearTimeout(waiting);
    sizes.disconnect();
    nodes.disconnect();
  };
}

function render({ model, el }) {
  const add = (text, title, action) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "wb-chart-tool";
    button.textContent = text;
    button.title = title;
    button.setAttribute("aria-label", `${title}: ${model.get("label")}`);
    button.addEventListener("click", action);
    el.appendChild(button);
  };
  el.classList.add("wb-chart-tools");
  const title = document.createElement("span");
  title.className = "wb-chart-title";
  title.textContent = model.get("label");
  el.appendChild(title);
  const [png, csv] = model.get("titles");
  add("PNG", png, () => {
    const box = el.closest(".wb-chart")?.querySelector(".js-plotly-plot");
    // The camera is the first button of the first group, whatever the language.
    box?.querySelector(".modebar-group .modebar-btn")?.click();
  });
  add("CSV", csv, () => model.send({ type: "csv" }));
  const heard = (message) => {
    if (typeof (message || {}).csv === "string") {
      save(`${model.get("file")}.csv`, message.csv);
    }
  };
  model.on("msg:custom", heard);
  const stops = [
    asWideAsTheCell(el),
    followGround(el, (dark) => model.send({ type: "ground", dark })),
  ];
  return () => {
    stops.forEach((stop) => stop());
    model.off("msg:custom", heard);
  };
}

export default { render };
