// A menu of languages. The choice is kept in a cookie; then the page loads again.
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

  select.addEventListener("change", () => {
    select.disabled = true;
    document.cookie = `${model.cookie}=${select.value}; path=/; max-age=31536000; samesite=lax`;
    const address = new URL(window.location.href);
    address.searchParams.delete("language");
    if (address.href === window.location.href) {
      window.location.reload();
    } else {
      window.location.replace(address.href);
    }
  });
  el.appendChild(select);
}
