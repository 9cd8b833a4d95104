// A menu of languages. The choice is kept in a cookie; then the page loads again, and the ticket
// that the server answers with brings back what this window showed.
export function render({ model, el }) {
  const select = document.createElement("select");
  select.className = "wb-language";
  select.setAttribute("aria-label", model.label);
  for (const [code, name, tag] of model.languages) {
    const option = document.createElement("option");
    option.value = code;
    option.lang = tag;
    option.textContent = name;
    select.appendChild(option);
    if (code === model.language) {
      document.documentElement.lang = tag;
    }
  }
  select.value = model.language;

  const [choice, window_] = model.cookies;
  const remember = (name, value, seconds) => {
    document.cookie = `${name}=${value}; path=/; max-age=${seconds}; samesite=lax`;
  };
  const load = () => {
    const address = new URL(window.location.href);
    address.searchParams.delete("language");
    if (address.href === window.location.href) {
      window.location.reload();
    } else {
      window.location.replace(address.href);
    }
  };
  let slow = 0;
  select.addEventListener("change", () => {
    select.disabled = true;
    remember(choice, select.value, 31536000);
    model.send_msg({ type: "choose" });
    slow = window.setTimeout(load, 2000); // without the server's answer the language still changes
  });
  model.on("ticket", () => {
    window.clearTimeout(slow);
    remember(window_, model.ticket, 60);
    load();
  });
  el.appendChild(select);
}
