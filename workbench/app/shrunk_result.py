"""What came of making a smaller project: figures before and after, and the way there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlencode

from workbench.app.html import escape
from workbench.app.i18n import _, said
from workbench.app.projects import projects_folder
from workbench.charts import formats
from workbench.studio.pruning_state import Shrunk
from workbench.studio.pruning_words import shrunk_advice


def project_link(folder: str, text: str) -> str:
    """A link to the page of a project of this workspace; of any other one its folder."""
    path = Path(folder)
    if path.parent.resolve() != projects_folder().resolve():
        return f"<code>{escape(folder)}</code>"
    return f'<a href="?{escape(urlencode({"project": path.name}))}">{escape(text)}</a>'


def shrunk_line(shrunk: Shrunk | None, kind: str) -> str:
    """That a new project of ``kind`` (prune, decompose) is there, with the way to it."""
    if shrunk is None or shrunk.kind != kind:
        return ""
    name = Path(shrunk.folder).name
    if not Path(shrunk.folder).is_dir():
        gone = _("{name} was made of this model, and is deleted by now.").format(name=name)
        return f'<div class="wb-muted">{escape(gone)}</div>'
    link = project_link(shrunk.folder, _("Open {name}").format(name=name))
    return (
        f'<div role="status"><b class="wb-good">✓ {escape(_("Done"))}</b>: {link} · '
        f"{escape(_('Export shows both graphs side by side.'))}</div>"
    )


def shrunk_result(shrunk: Shrunk | None, kind: str) -> str:
    """The new project of ``kind`` with its figures and what to do next; empty without one."""
    if shrunk is None or shrunk.kind != kind:
        return ""
    title = {"prune": _("Pruned project"), "decompose": _("Decomposed project")}[kind]
    advice = "".join(f"<li>{escape(line)}</li>" for line in shrunk_advice(shrunk))
    return (
        f'<h2 class="wb">{escape(title)}</h2>{before_after(shrunk)}{_notes(shrunk)}'
        f'<ul class="wb-muted">{advice}</ul>'
    )


def made_from(origin: Shrunk | None) -> str:
    """Of a smaller project: what it was made of, with a link and the figures; empty of others."""
    if origin is None:
        return ""
    words = {
        "prune": _("This is a pruned model, made of {base}."),
        "decompose": _("This is a decomposed model, made of {base}."),
    }[origin.kind]
    base = project_link(origin.base, Path(origin.base).name)
    return f'<div class="wb-info">{escape(words).replace("{base}", base)}</div>'


def before_after(shrunk: Shrunk) -> str:
    """Metric, cost and latency of both models as a table."""
    name = shrunk.metric_name
    metric = f"{formats.metric_title(name) or _('metric')} · {_('not retrained')}"
    rows: tuple[tuple[str, Callable[[float], str], tuple[float, float], str], ...] = (
        (metric, lambda value: formats.metric(value, name), shrunk.metric,
         formats.metric_delta(*shrunk.metric, name)),
        (_("multiply-accumulates"), formats.count, shrunk.macs, formats.ratio(*shrunk.macs)),
        (_("parameters"), formats.count, shrunk.parameters, formats.ratio(*shrunk.parameters)),
        (_("size"), formats.size, shrunk.bytes, formats.ratio(*shrunk.bytes)),
        (_("latency"), _milliseconds, shrunk.latency_ms, formats.ratio(*shrunk.latency_ms)),
    )  # fmt: skip
    head = "".join(
        f'<th class="wb-number">{escape(title)}</th>'
        for title in ("", _("before"), _("after"), _("change"))
    )
    lines = "".join(
        f"<tr><td>{escape(title)}</td>"
        + "".join(f'<td class="wb-number">{show(value)}</td>' for value in pair)
        + f'<td class="wb-number">{escape(change)}</td></tr>'
        for title, show, pair, change in rows
    )
    return f'<table class="wb"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'


def _milliseconds(value: float) -> str:
    return f"{value:.2f} ms" if math.isfinite(value) else formats.UNKNOWN


def _notes(shrunk: Shrunk) -> str:
    title = _("stayed as they are: {count}").format(count=len(shrunk.notes))
    return reasons_fold(title, shrunk.notes)


def reasons_fold(title: str, reasons: Mapping[str, str]) -> str:
    """Layers and why, folded away under ``title``; empty without any."""
    lines = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(said(reason))}</td></tr>"
        for name, reason in reasons.items()
    )
    if not lines:
        return ""
    return f'<details><summary>{escape(title)}</summary><table class="wb">{lines}</table></details>'
