"""The smaller project that pruning or decomposition made, in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path

from workbench.charts.text import _
from workbench.studio.pruning_state import Shrunk
from workbench.studio.pruning_words import Figure, shrunk_advice, shrunk_figures


def figures_html(figures: Iterable[Figure]) -> str:
    """Quantities before and after as a table."""
    lines = "".join(
        f"<tr><td>{html.escape(figure.title)}</td><td>{html.escape(figure.whole)} →</td>"
        f"<td><b>{html.escape(figure.left)}</b></td><td>{html.escape(figure.ratio)}</td>"
        f"<td>{html.escape(figure.note)}</td></tr>"
        for figure in figures
    )
    return f'<table class="wb-table">{lines}</table>' if lines else ""


def shrunk_html(shrunk: Shrunk | None, kind: str, *, trainable: bool) -> str:
    """The last smaller project of ``kind`` (prune, decompose) and its figures; empty before one."""
    if shrunk is None or shrunk.kind != kind:
        return ""
    words = {
        "prune": _("pruned project: {name}"),
        "decompose": _("decomposed project: {name}"),
    }[kind]
    done = words.format(name=Path(shrunk.folder).name)
    folder = f"<code>wb.open({html.escape(repr(shrunk.folder))})</code>"
    advice = "<br>".join(html.escape(line) for line in shrunk_advice(shrunk, trainable=trainable))
    return (
        f'<div class="wb-note"><span class="wb-good">✓ {html.escape(done)}</span> · {folder}</div>'
        f'{figures_html(shrunk_figures(shrunk))}<div class="wb-note">{advice}</div>'
    )
