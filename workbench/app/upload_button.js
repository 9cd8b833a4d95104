// Sends chosen files one after the other, with progress; then tells the server their names.
export function render({ model, el }) {
  const input = document.createElement("input");
  input.type = "file";
  input.multiple = true;
  input.accept = model.accept;
  input.hidden = true;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "wb-upload";
  button.textContent = model.label;
  const said = document.createElement("span");
  said.className = "wb-upload-said";
  said.setAttribute("role", "status");
  button.addEventListener("click", () => input.click());

  const send = (file) => new Promise((resolve) => {
    const request = new XMLHttpRequest();
    request.open("POST", model.address);
    request.setRequestHeader("X-Workbench-File", encodeURIComponent(file.name));
    request.responseType = "json";
    request.upload.onprogress = (event) => {
      const share = event.lengthComputable ? Math.round((100 * event.loaded) / event.total) : 0;
      said.textContent = `${file.name} ${share} %`;
    };
    request.onload = () => resolve(request.response || { error: `${request.status}` });
    request.onerror = () => resolve({ error: model.lost });
    request.send(file);
  });

  input.addEventListener("change", async () => {
    button.disabled = true;
    const names = [];
    let error = "";
    for (const file of input.files) {
      const answer = await send(file);
      if (answer.error) { error = answer.error; break; }
      names.push(answer.name);
    }
    input.value = "";
    button.disabled = false;
    said.textContent = error ? `✕ ${error}` : `✓ ${names.join(", ")}`;
    model.send_msg({ names });
  });
  model.on("go", () => { if (model.go) window.location.search = model.go; });
  el.append(button, input, said);
}
