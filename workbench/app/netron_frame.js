// One Netron page in a frame. Talks to bridge.js inside it: which node is selected, colours, theme.
export function render({ model, el }) {
  const frame = document.createElement("iframe");
  frame.style.cssText = "width:100%;height:100%;border:1px solid var(--wb-grid);border-radius:4px";
  el.style.height = "100%";
  el.appendChild(frame);

  const tell = (message) => {
    if (frame.contentWindow) {
      frame.contentWindow.postMessage(message, window.location.origin);
    }
  };
  const dress = () => {
    tell({ type: "workbench-theme", dark: model.dark });
    tell({ type: "workbench-colors", colors: model.colors });
    if (model.selected) {
      tell({ type: "workbench-select", name: model.selected });
    }
  };
  // Netron scrolls its first node into view, and a same-origin frame scrolls the page with it.
  const holders = () => {
    const found = [];
    for (let node = el; node; node = node.parentNode || node.host) {
      if (node.nodeType === 1 && node.scrollHeight > node.clientHeight + 1) {
        found.push([node, node.scrollTop]);
      }
    }
    return found;
  };
  const hold = () => {
    const kept = holders();
    const end = performance.now() + 4000;
    let free = false;
    const release = () => { free = true; };
    for (const name of ["wheel", "pointerdown", "keydown", "touchstart"]) {
      window.addEventListener(name, release, { once: true, capture: true });
    }
    const step = () => {
      if (free || performance.now() > end) {
        return;
      }
      for (const [node, top] of kept) {
        if (node.scrollTop !== top) {
          node.scrollTop = top;
        }
      }
      window.requestAnimationFrame(step);
    };
    step();
  };
  const load = () => {
    hold();
    frame.title = model.label;
    if (model.src) {
      frame.src = model.src;
    } else {
      frame.removeAttribute("src");
    }
  };
  const hear = (event) => {
    if (event.source !== frame.contentWindow || event.origin !== window.location.origin) {
      return;
    }
    const message = event.data || {};
    if (message.type === "workbench-ready") {
      dress();
      model.send_msg({ type: "ready", nodes: message.nodes });
    } else if (message.type === "workbench-node") {
      model.send_msg({ type: "node", name: message.name });
    }
  };
  window.addEventListener("message", hear);
  model.on("src", load);
  model.on("dark", () => tell({ type: "workbench-theme", dark: model.dark }));
  model.on("colors", () => tell({ type: "workbench-colors", colors: model.colors }));
  model.on("selected", () => {
    if (model.selected) {
      tell({ type: "workbench-select", name: model.selected });
    }
  });
  model.on("remove", () => window.removeEventListener("message", hear));
  load();
}
