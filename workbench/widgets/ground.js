// Whether an element stands on dark ground, in any notebook, and whenever that changes.
function standsOnDark(el) {
  const lab = document.body.dataset.jpThemeLight; // JupyterLab, Notebook 7, pages of nbconvert
  if (lab) return lab === "false";
  for (let node = el; node; node = node.parentElement ?? node.getRootNode().host) {
    const [red, green, blue, alpha = 1] =
      getComputedStyle(node).backgroundColor.match(/^rgb.*/)?.[0].match(/[\d.]+/g).map(Number) ?? [];
    if (alpha > 0.5 && blue !== undefined) return 0.3 * red + 0.6 * green + 0.1 * blue < 128;
  }
  const code = document.body.dataset.vscodeThemeKind; // its notebooks have no ground of their own
  if (code) return !code.includes("light");
  const schemes = getComputedStyle(document.documentElement).colorScheme;
  return schemes.includes("dark") && matchMedia("(prefers-color-scheme: dark)").matches;
}

// Calls tell(dark) once el is in the page, and at each change; returns what ends that.
function followGround(el, tell) {
  let last = null;
  const look = () => {
    const dark = standsOnDark(el);
    if (dark !== last) tell((last = dark));
  };
  const changes = new MutationObserver(look);
  for (const node of [document.documentElement, document.body]) {
    changes.observe(node, { attributes: true });
  }
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", look);
  const first = requestAnimationFrame(look);
  return () => {
    cancelAnimationFrame(first);
    changes.disconnect();
    system.removeEventListener("change", look);
  };
}

