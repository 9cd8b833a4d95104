// A button that says how many shown layers are worse than the threshold line. While the line is
// dragged it counts in the browser from what the chart has drawn; the server hears of the release.
const WORSE_CODES = 2; // colour codes 0…2 are the quantised states, see charts/sensitivity.py

function countWorse(plot, line) {
  const bars = plot._fullData[0];
  const isError = plot._fullLayout.yaxis.type === "log";
  let count = 0;
  for (let i = 0; i < bars.y.length; i++) {
    const base = Array.isArray(bars.base) || ArrayBuffer.isView(bars.base) ? bars.base[i] : bars.base || 0;
    const value = bars.y[i] + (isError ? 0 : base);
    if (bars.marker.color[i] < WORSE_CODES && (isError ? value > line : value < line)) {
      count += 1;
    }
  }
  return count;
}

export function render({ model, el }) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "wb-count";
  button.addEventListener("click", () => model.send_msg({ type: "skip" }));
  el.appendChild(button);

  const show = (threshold, count) => {
    button.textContent = (count > 0 ? model.some : model.none)
      .replace("{n}", String(count)).replace("{cos}", Number(threshold.toPrecision(5)).toString());
    button.disabled = count === 0;
  };
  const settle = () => show(model.threshold, model.count);
  model.on("threshold", settle);
  model.on("count", settle);
  settle();

  const follow = (event) => {
    const [plot] = event.composedPath();
    const threshold = plot._fullLayout.yaxis.type === "log" ? 1 - event.detail : event.detail;
    show(threshold, countWorse(plot, event.detail));
  };
  document.addEventListener("wb-line", follow);
  model.on("remove", () => document.removeEventListener("wb-line", follow));
}
