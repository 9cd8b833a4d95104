"""What the benchmarks of the page do inside the browser; the page is a tree of shadow roots."""

from __future__ import annotations

from typing import Any

_ALL = """
  const all = (selector, root = document, found = []) => {
    found.push(...root.querySelectorAll(selector));
    for (const node of root.querySelectorAll('*')) {
      if (node.shadowRoot) all(selector, node.shadowRoot, found);
    }
    return found;
  };
"""

# Click a tick; milliseconds until its cell and the top bar show the new state, and until the chart
# does too.
CLICK_UNTIL_DONE = (
    """
([field, index]) => new Promise((resolve) => {"""
    + _ALL
    + """
  const cell = () => all(`.tabulator-cell[tabulator-field='${field}'] [role='checkbox']`)[index];
  const readout = () => all('.wb-readout').at(-1).innerText;
  const plot = all('.js-plotly-plot').find((node) => (node._fullLayout.shapes || [])[0]);
  const tick = cell().getAttribute('aria-checked'), text = readout(), { data } = plot;
  const start = performance.now();
  let near = 0;
  const wait = () => {
    const now = performance.now() - start;
    if (!near && cell().getAttribute('aria-checked') !== tick && readout() !== text) {
      near = now;
    }
    if (near && plot.data !== data) {
      resolve([near, now]);
    } else if (now > 10000) {
      resolve([NaN, NaN]);
    } else {
      setTimeout(wait, 2);
    }
  };
  cell().click();
  wait();
})
"""
)

# Press a button; milliseconds until it is gone.
PRESS_UNTIL_GONE = (
    """
(label) => new Promise((resolve) => {"""
    + _ALL
    + """
  const button = all('button').find(
    (node) => node.innerText.trim() === label && node.checkVisibility());
  const start = performance.now();
  const wait = () => {
    if (!button.isConnected || !button.checkVisibility()) {
      resolve(performance.now() - start);
    } else if (performance.now() - start > 60000) {
      resolve(NaN);
    } else {
      setTimeout(wait, 2);
    }
  };
  button.click();
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

_PLAN = (
    _ALL
    + """
  const plot = all('.js-plotly-plot').find(
    (node) => node.checkVisibility() && node._fullLayout.barmode === 'stack');
  const figures = all('.wb-readout').filter(
    (node) => node.checkVisibility() && node.innerText.includes('→')).at(-1).getRootNode();
  const text = () => figures.querySelector('.wb-readouts').textContent;
"""
)

# Move the slider of plans by one step; milliseconds until figures and chart show another plan.
STEP_UNTIL_DONE = (
    """
() => new Promise((resolve) => {"""
    + _PLAN
    + """
  const before = { text: text(), data: plot.data };
  const start = performance.now();
  const wait = () => {
    if (text() !== before.text && plot.data !== before.data) {
      resolve(performance.now() - start);
    } else if (performance.now() - start > 10000) {
      resolve(NaN);
    } else {
      setTimeout(wait, 2);
    }
  };
  const slider = all("input[type='range']").find((node) => node.checkVisibility());
  slider.focus();
  const key = { key: 'ArrowRight', bubbles: true, cancelable: true, composed: true };
  slider.dispatchEvent(new KeyboardEvent('keydown', key));
  wait();
})
"""
)

# Note when the figures of a plan and its chart change, and when the slider is let go.
WATCH_SLIDER = (
    """
() => {"""
    + _PLAN
    + """
  const seen = window.wbSlider = { figures: [], charts: [], released: 0 };
  document.addEventListener('pointerup', () => { seen.released = performance.now(); }, true);
  let shown = text(), { data } = plot;
  const watch = () => {
    if (text() !== shown) {
      shown = text();
      seen.figures.push(performance.now());
    }
    if (plot.data !== data) {
      ({ data } = plot);
      seen.charts.push(performance.now());
    }
    setTimeout(watch, 4);
  };
  watch();
}
"""
)


def toggles(page: Any, count: int) -> tuple[list[float], list[float]]:
    """Click so many ticks, one after the other, each when the last one's chart is drawn.

    Milliseconds until table and top bar follow, and until the chart does; without the first.
    """
    found = [page.evaluate(CLICK_UNTIL_DONE, ["quant_enable", 1 + i % 3]) for i in range(count)]
    near, all_views = zip(*found[1:], strict=True)
    return list(near), list(all_views)
