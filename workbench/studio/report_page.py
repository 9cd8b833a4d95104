"""The shell of an offline report: one HTML page that needs nothing and nobody."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from workbench.charts.drawn import figure_csv
from workbench.charts.text import _, current
from workbench.charts.theme import DARK, FONT, LIGHT, Palette

if TYPE_CHECKING:
    import plotly.graph_objects as go

Draw = Callable[[bool], "go.Figure"]
"""A chart in light (False) or dark."""

Cell = str | tuple[str, str]
"""Text, or text and the class of its cell."""

_NONCE = "workbench"
_POLICY = (
    f"default-src 'none'; script-src 'nonce-{_NONCE}'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
)
"""Nothing is ever fetched, and no script runs but the two of this page."""


def _variables(colours: Palette, paper: str) -> str:
    return (
        f"--text:{colours.text};--muted:{colours.muted};--grid:{colours.grid};"
        f"--accent:{colours.accent};--good:{colours.good};--bad:{colours.bad};--paper:{paper};"
    )


_LIGHT, _DARK = _variables(LIGHT, "#ffffff"), _variables(DARK, "#14191f")
_STYLE = f"""
:root {{ color-scheme: light; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ color-scheme: dark; {_DARK} }} }}
:root[data-theme=light] {{ color-scheme: light; {_LIGHT} }}
:root[data-theme=dark] {{ color-scheme: dark; {_DARK} }}
body {{ font: 13px/1.5 {FONT}; color: var(--text); background: var(--paper); margin: 0 auto;
  max-width: 1120px; padding: 24px; font-variant-numeric: tabular-nums; }}
header {{ display: flex; justify-content: space-between; gap: 24px; align-items: start; }}
h1 {{ font-size: 20px; margin: 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 16px; margin: 32px 0 8px; border-bottom: 1px solid var(--grid); }}
p {{ margin: 6px 0; }}
.muted {{ color: var(--muted); }} .good {{ color: var(--good); }} .bad {{ color: var(--bad); }}
dl {{ display: flex; flex-wrap: wrap; gap: 8px 36px; margin: 16px 0; }}
dt {{ color: var(--muted); font-size: 12px; }} dd {{ margin: 0; font-size: 16px; }}
.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: left; padding: 3px 16px 3px 0; border-bottom: 1px solid var(--grid);
  vertical-align: top; overflow-wrap: anywhere; max-width: 420px; }}
th {{ color: var(--muted); font-weight: 500; font-size: 12px; white-space: nowrap; }}
.number {{ text-align: right; white-space: nowrap; }}
figure {{ margin: 12px 0; }} figcaption {{ color: var(--muted); }}
a {{ color: var(--accent); }}
pre {{ border: 1px solid var(--grid); border-radius: 4px; padding: 12px; overflow: auto;
  max-height: 480px; font-size: 12px; }}
summary {{ cursor: pointer; color: var(--accent); }}
button {{ font: inherit; color: var(--accent); background: none; border: 1px solid currentColor;
  border-radius: 4px; padding: 4px 10px; cursor: pointer; white-space: nowrap; }}
@media print {{ button {{ display: none; }} pre {{ max-height: none; }} }}
"""

_SCRIPT = """
const root = document.documentElement;
const preferred = window.matchMedia("(prefers-color-scheme: dark)");
const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : preferred.matches;
const draw = () => {
  for (const box of document.querySelectorAll("[data-chart]")) {
    const both = JSON.parse(document.getElementById(box.dataset.chart).textContent);
    const figure = both[isDark() ? 1 : 0];
    delete figure.layout.width;
    for (const shape of figure.layout.shapes || []) { shape.editable = false; }
    figure.layout.dragmode = "zoom";
    const paper = getComputedStyle(document.body).backgroundColor;
    figure.layout.paper_bgcolor = paper;
    window.Plotly.react(box, figure.data, figure.layout, {
      displaylogo: false, responsive: true,
      toImageButtonOptions: { filename: box.dataset.name, scale: 2 },
      modeBarButtonsToRemove: ["select2d", "lasso2d", "sendDataToCloud"],
    });
  }
};
const button = document.getElementById("theme");
button.hidden = false;
button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  draw();
});
preferred.addEventListener("change", draw);
draw();
"""


class ReportPage:
    """Collects the parts of a report; ``html`` puts them together. Every text is escaped here."""

    def __init__(self, title: str, about: str) -> None:
        self._title, self._about = title, about
        self._parts: list[str] = []
        self._charts = 0

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str, tone: str = "") -> None:
        self._parts.append(f'<p class="{tone}">{escape(text)}</p>')

    def readouts(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Large figures, each under its name."""
        body = "".join(f"<div><dt>{escape(a)}</dt><dd>{escape(b)}</dd></div>" for a, b in pairs)
        self._parts.append(f"<dl>{body}</dl>")

    def table(self, heads: Sequence[Cell], rows: Iterable[Sequence[Cell]]) -> None:
        top = "".join(_cell(head, "th") for head in heads)
        body = "".join(f"<tr>{''.join(_cell(cell, 'td') for cell in row)}</tr>" for row in rows)
        self._parts.append(
            f'<div class="table"><table><thead><tr>{top}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def chart(self, title: str, draw: Draw) -> None:
        """A chart in both themes, and its figures as a file that needs no script."""
        light, dark = draw(False), draw(True)
        self._charts += 1
        name = f"chart-{self._charts}"
        data = f"[{light.to_json()},{dark.to_json()}]".replace("<", "\\u003c")
        csv = base64.b64encode(b"\xef\xbb\xbf" + figure_csv(light).encode()).decode()
        height = int(light.layout.height or 280)
        needs = escape(_("The chart needs JavaScript; its figures are in the file beside."))
        self._parts.append(
            f"<figure><figcaption>{escape(title)} · "
            f'<a download="{escape(title)}.csv" href="data:text/csv;base64,{csv}">CSV</a>'
            f'</figcaption><div data-chart="{name}" data-name="{escape(title)}" role="img" '
            f'aria-label="{escape(title)}" style="height:{height}px"></div>'
            f'<noscript><p class="muted">{needs}</p></noscript>'
            f'<script type="application/json" id="{name}">{data}</script></figure>'
        )

    def code(self, title: str, text: str, *, opened: bool = False) -> None:
        self._parts.append(
            f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>"
            f"<pre><code>{escape(text)}</code></pre></details>"
        )

    def html(self) -> str:
        """The whole page; plotly.js is in it once, and not at all without a chart."""
        scripts = ""
        language = current().info().get("language") or "en"
        if self._charts:
            from plotly.offline import get_plotlyjs

            plotly = get_plotlyjs().replace("</script", "<\\/script")
            scripts = (
                f'<script nonce="{_NONCE}">{plotly}</script>'
                f'<script nonce="{_NONCE}">{_SCRIPT}</script>'
            )
        return (
            f'<!DOCTYPE html>\n<html lang="{escape(language)}">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            '<meta name="viewport" content="width=device-width">\n'
            f"<title>{escape(self._title)}</title>\n<style>{_STYLE}</style>\n"
            "<noscript><style>[data-chart] { display: none }</style></noscript>\n</head>\n<body>\n"
            f'<header><div><h1>{escape(self._title)}</h1><p class="muted">{escape(self._about)}'
            f'</p></div><button id="theme" type="button" hidden>'
            f"{escape(_('Light or dark'))}</button></header>\n<main>\n"
            + "\n".join(self._parts)
            + f"\n</main>\n{scripts}\n</body>\n</html>\n"
        )


def _cell(cell: Cell, tag: str) -> str:
    text, css = cell if isinstance(cell, tuple) else (cell, "")
    return f'<{tag} class="{css}">{escape(text)}</{tag}>'
