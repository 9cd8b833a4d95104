// The title of a chart and two small buttons: its picture, by plotly's own button for it, and its figures.
function save(name, text) {
  const link = document.createElement("a");
  // The mark tells spreadsheets that the text is UTF-8.
  link.href = URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
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
  return () => model.off("msg:custom", heard);
}

export default { render };
