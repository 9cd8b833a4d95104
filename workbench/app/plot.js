// Draws a plotly figure with the page's plotly.js, or with one that knows more kinds of charts
// (model.library). Whole figures come in and Plotly.react keeps zoom by uirevision. Only clicks,
// selections and moved shapes go back; texts travel apart from the figure, because a toggle changes
// colours but no text.
const loading = {};

// Another plotly.js than the page's, which stays the page's.
function load(address) {
  loading[address] ||= new Promise((resolve, reject) => {
    const usual = window.Plotly;
    const script = document.createElement("script");
    script.src = address;
    script.addEventListener("load", () => {
      resolve(window.Plotly);
      window.Plotly = usual;
    });
    script.addEventListener("error", () => {
      delete loading[address];
      reject(new Error(`${address} could not be loaded`));
    });
    document.head.appendChild(script);
  });
  return loading[address];
}

function fileName(model) {
  const project = new URLSearchParams(window.location.search).get("project") || "";
  return `${project} ${model.label.split(";")[0]}`.trim().replace(/[^\p{L}\p{N}._-]+/gu, "-").slice(0, 120);
}

// A picture that is transparent could not be read on another background than the page's.
function background(node) {
  for (let at = node; at; at = at.parentElement || (at.getRootNode() || {}).host) {
    const colour = getComputedStyle(at).backgroundColor;
    if (colour && colour !== "transparent" && !colour.endsWith(", 0)")) {
      return colour;
    }
  }
  return getComputedStyle(document.body).backgroundColor || "white";
}

function save(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function downloads(model, box, plotly) {
  const tools = document.createElement("div");
  tools.className = "wb-plot-tools";
  const add = (text, title, action) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.title = title;
    button.setAttribute("aria-label", `${title}: ${model.label}`);
    button.addEventListener("click", action);
    tools.appendChild(button);
  };
  add("PNG", model.png, () => {
    if (box.data) {
      const layout = { ...box.layout, paper_bgcolor: background(box) };
      plotly().downloadImage({ data: box.data, layout }, {
        format: "png", filename: fileName(model), scale: 2,
        width: box.clientWidth, height: box.clientHeight,
      });
    }
  });
  add("CSV", model.csv, () => model.send_msg({ type: "csv" }));
  model.on("msg:custom", (message) => {
    if (typeof (message || {}).csv === "string") {
      // The mark tells spreadsheets that the text is UTF-8.
      save(`${fileName(model)}.csv`, new Blob(["\ufeff", message.csv], { type: "text/csv" }));
    }
  });
  return tools;
}

export function render({ model, el }) {
  const box = document.createElement("div");
  box.style.cssText = `width:100%;height:${model.height}px`;
  // A picture may hold nothing to press; a figure may.
  box.setAttribute("role", model.config.displayModeBar === false ? "img" : "figure");
  box.setAttribute("aria-label", model.label);
  el.style.width = "100%";
  el.style.position = "relative";
  el.appendChild(box);
  let plotly = model.library ? null : window.Plotly;
  el.appendChild(downloads(model, box, () => plotly));
  let ready = false;
  let pressed = null;
  let waiting = false;

  const build = () => {
    const figure = JSON.parse(model.figure);
    const texts = JSON.parse(model.texts);
    figure.data.forEach((trace, i) => Object.assign(trace, texts[i] || {}));
    // The line is moved by the code below: plotly's own handle is as thin as the line itself.
    (figure.layout.shapes || []).forEach((shape) => { shape.editable = false; });
    figure.layout.width = Math.max(60, box.clientWidth);
    figure.layout.height = model.height;
    return figure;
  };
  const names = (points) => [...new Set((points || [])
    .map((point) => (Array.isArray(point.customdata) ? point.customdata[0] : point.customdata))
    .filter((name) => typeof name === "string" && name !== ""))];
  const byPlace = () => (box.layout && box.layout.meta && box.layout.meta.click) || "";
  // plotly forgets what is under the pointer whenever it draws, and thin bars are hard to hit: the
  // bar charts say in their meta that a click anywhere in a bar's column (or row) means that bar.
  const place = (event) => {
    const direction = byPlace();
    const layout = box._fullLayout;
    if (!direction || !layout || event.composedPath()[0].closest(".shapelayer, .modebar, .legend")) {
      return null;
    }
    const rect = box.getBoundingClientRect();
    const [x, y] = [event.clientX - rect.left, event.clientY - rect.top];
    const { xaxis, yaxis } = layout;
    if (x < xaxis._offset || x > xaxis._offset + xaxis._length ||
        y < yaxis._offset || y > yaxis._offset + yaxis._length) {
      return null;
    }
    const at = direction === "columns" ? xaxis.p2d(x - xaxis._offset) : yaxis.p2d(y - yaxis._offset);
    const name = box.data[0].customdata[Math.round(at)];
    return typeof name === "string" && name !== "" ? name : null;
  };
  // A line named "threshold" can be dragged up and down; it is grabbed within a few pixels. While
  // it is dragged only the line and its label move: a redraw of plotly's is too slow for that. Who
  // wants to follow it hears of "wb-line" events.
  let dragged = null;
  const lineNear = (event) => {
    const shape = box._fullLayout && (box._fullLayout.shapes || [])[0];
    if (!shape || shape.name !== "threshold") {
      return false;
    }
    const { xaxis, yaxis } = box._fullLayout;
    const rect = box.getBoundingClientRect();
    const x = event.clientX - rect.left - xaxis._offset;
    const y = event.clientY - rect.top - yaxis._offset;
    return x >= 0 && x <= xaxis._length && Math.abs(y - yaxis.d2p(shape.y0)) <= 6;
  };
  const lineParts = () => box.querySelectorAll(
    ".shapelayer [data-index='0'], .infolayer .annotation[data-index='0']");
  const moveLine = () => {
    dragged.waiting = false;
    const { yaxis, shapes } = box._fullLayout;
    const rect = box.getBoundingClientRect();
    const y = Math.min(yaxis._length, Math.max(0, dragged.y - rect.top - yaxis._offset));
    dragged.value = yaxis.p2d(y);
    dragged.moved = true;
    const shift = y - yaxis.d2p(shapes[0].y0);
    lineParts().forEach((part) => { part.style.transform = `translateY(${shift}px)`; });
    box.dispatchEvent(new CustomEvent("wb-line",
      { bubbles: true, composed: true, detail: dragged.value }));
  };
  const settleLine = (value) => plotly.relayout(box, {
    "shapes[0].y0": value,
    "shapes[0].y1": value,
    "annotations[0].y": box._fullLayout.yaxis.d2l(value),
  }).then(() => lineParts().forEach((part) => { part.style.transform = ""; }));
  const move = (event) => {
    if (dragged === null) {
      if (event.buttons === 0) {
        box.classList.toggle("wb-line-near", lineNear(event));
      }
      return;
    }
    dragged.y = event.clientY;
    if (!dragged.waiting) {
      dragged.waiting = true;
      window.requestAnimationFrame(() => dragged && moveLine());
    }
  };
  const block = (event) => {
    if (dragged !== null) {
      event.stopPropagation();
      event.preventDefault();
    }
  };
  box.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) {
      return;
    }
    if (lineNear(event)) {
      dragged = { y: event.clientY, value: null, moved: false, waiting: false };
      box.setPointerCapture(event.pointerId);
    } else {
      pressed = { x: event.clientX, y: event.clientY, name: place(event) };
    }
  }, true);
  box.addEventListener("mousedown", block, true);
  box.addEventListener("pointermove", move, true);
  // plotly lays a sheet over the whole page while the button is down.
  const release = (event) => {
    if (dragged !== null) {
      const { moved, value } = dragged;
      dragged = null;
      if (moved) {
        settleLine(value);
        model.send_msg({ type: "shape", changes: { "shapes[0].y0": value, "shapes[0].y1": value } });
      }
    } else if (pressed && pressed.name &&
        Math.hypot(event.clientX - pressed.x, event.clientY - pressed.y) < 4) {
      model.send_msg({ type: "click", name: pressed.name });
    }
    pressed = null;
  };
  document.addEventListener("pointerup", release, true);
  const listen = () => {
    box.on("plotly_click", (event) => {
      const found = names(event && event.points);
      if (found.length && !byPlace()) {
        model.send_msg({ type: "click", name: found[0] });
      }
    });
    box.on("plotly_selected", (event) => {
      if (event) {
        model.send_msg({ type: "select", names: names(event.points) });
      }
    });
  };
  const draw = () => {
    waiting = false;
    if (!plotly || !model.figure || box.clientWidth === 0) {
      return;
    }
    const figure = build();
    plotly.react(box, figure.data, figure.layout, model.config).then(() => {
      if (!ready) {
        ready = true;
        listen();
        performance.mark("wb-chart-drawn");
      }
    });
  };
  const later = () => {
    if (!waiting) {
      waiting = true;
      queueMicrotask(draw);
    }
  };
  model.on("figure", later);
  model.on("texts", later);
  model.on("height", () => {
    box.style.height = `${model.height}px`;
    later();
  });
  model.on("label", () => box.setAttribute("aria-label", model.label));
  let width = 0;
  const watcher = new ResizeObserver(() => {
    if (box.clientWidth !== width) {
      width = box.clientWidth;
      later();
    }
  });
  watcher.observe(box);
  if (model.library) {
    load(model.library).then((library) => {
      plotly = library;
      later();
    });
  }
  model.on("remove", () => {
    watcher.disconnect();
    document.removeEventListener("pointerup", release, true);
    if (plotly) {
      plotly.purge(box);
    }
  });
}
