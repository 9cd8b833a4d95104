// Copies text to the clipboard; also where the page is not in a secure context (plain http).
export function render({ model, el }) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "wb-copy";
  button.textContent = model.label;
  const fallback = () => {
    const area = document.createElement("textarea");
    area.value = model.text;
    area.style.position = "fixed";
    el.appendChild(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  };
  button.addEventListener("click", async () => {
    let done = false;
    try {
      await navigator.clipboard.writeText(model.text);
      done = true;
    } catch {
      done = fallback();
    }
    button.textContent = done ? model.done : model.failed;
    window.setTimeout(() => { button.textContent = model.label; }, 1500);
  });
  el.appendChild(button);
}
