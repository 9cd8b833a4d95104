// The names of the tabs. Arrows, Home and End move between them, Tab leaves them.
export function render({ model, el }) {
  const list = document.createElement("div");
  list.className = "wb-tabs";
  list.setAttribute("role", "tablist");
  list.setAttribute("aria-label", model.label);
  const buttons = model.names.map((name, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "wb-tab";
    button.setAttribute("role", "tab");
    button.textContent = name;
    button.addEventListener("click", () => { model.active = index; });
    list.appendChild(button);
    return button;
  });
  const show = () => buttons.forEach((button, index) => {
    const chosen = index === model.active;
    button.setAttribute("aria-selected", String(chosen));
    button.tabIndex = chosen ? 0 : -1;
    if (chosen) {
      button.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
  });
  list.addEventListener("keydown", (event) => {
    const last = buttons.length - 1;
    const next = {
      ArrowRight: model.active === last ? 0 : model.active + 1,
      ArrowLeft: model.active === 0 ? last : model.active - 1,
      Home: 0,
      End: last,
    }[event.key];
    if (next !== undefined) {
      event.preventDefault();
      model.active = next;
      buttons[next].focus();
    }
  });
  model.on("active", show);
  show();
  el.appendChild(list);
}
