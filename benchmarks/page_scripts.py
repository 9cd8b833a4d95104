"""What the benchmarks of the page do inside the browser; the page is a tree of shadow roots."""

_ALL = """
  const all = (selector, root = document, found = []) => {
    found.push(...root.querySelectorAll(selector));
    for (const node of root.querySelectorAll('*')) {
      if (node.shadowRoot) all(selector, node.shadowRoot, found);
    }
    return found;
  };
"""

# Click a tick; milliseconds until its cell and the top bar show the new state.
CLICK_UNTIL_DONE = (
    """
([field, index]) => new Promise((resolve) => {"""
    + _ALL
    + """
  const cell = () => all(`.tabulator-cell[tabulator-field='${field}'] [role='checkbox']`)[index];
  const readout = () => all('.wb-readout').at(-1).innerText;
  const tick = cell().getAttribute('aria-checked'), text = readout();
  const start = performance.now();
  const wait = () => {
    if (cell().getAttribute('aria-checked') !== tick && readout() !== text) {
      resolve(performance.now() - start);
    } else if (performance.now() - start > 10000) {
      resolve(NaN);
    } else {
      setTimeout(wait, 2);
    }
  };
  cell().click();
  wait();
})
"""
)

# Note when the count beside the chart changes, and what happens after the line is let go.
WATCH_DRAG = (
    """
() => {"""
    + _ALL
    + """
  const count = all('.wb-count')[0];
  const plot = all('.js-plotly-plot').find((node) => (node._fullLayout.shapes || [])[0]);
  const state = () => all(".tabulator-cell[tabulator-field='state']")[5].innerText;
  const seen = window.wbDrag = { changes: [], released: 0, followed: 0 };
  let text = count.innerText;
  const before = { data: plot.data, state: state() };
  const watch = () => {
    if (!seen.released && count.innerText !== text) {
      text = count.innerText;
      seen.changes.push(performance.now());
    }
    if (seen.released && plot.data !== before.data && state() !== before.state) {
      seen.followed = performance.now();
    } else {
      setTimeout(watch, 4);
    }
  };
  document.addEventListener('pointerup', () => { seen.released = performance.now(); }, true);
  watch();
}
"""
)
