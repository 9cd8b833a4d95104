"""What came of making a smaller project: figures before and after, and the way there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlencode

from workbench.app.html import escape
from workbench.app.i18n import _, said
from workbench.app.projects import projects_folder
from workbench.app.window import TABS, TRAIN_TAB
from workbench.charts import formats
from workbench.studio.pruning_state import Shrunk
from workbench.studio.pruning_words import Figure, shrunk_advice, shrunk_figures


def project_link(folder: str, text: str, **where: str) -> str:
    """A link to the page of a project of this workspace; of any other one its folder."""
    if not _in_workspace(folder):
        return f"<code>{escape(folder)}</code>"
    path = Path(folder)
    return f'<a href="?{escape(urlencode({"project": path.name, **where}))}">{escape(text)}</a>'


def _in_workspace(folder: str) -> bool:
    return Path(folder).parent.resolve() == projects_folder().resolve()


def shrunk_line(shrunk: Shrunk | None, kind: str, *, trainable: bool) -> str:
    """That a new project of ``kind`` (prune, decompose) is there, with the way to it."""
    if shrunk is None or shrunk.kind != kind:
        return ""
    name = Path(shrunk.folder).name
    if not Path(shrunk.folder).is_dir():
        gone = _("{name} was made of this model, and is deleted by now.").format(name=name)
        return f'<div class="wb-muted">{escape(gone)}</div>'
    links = [project_link(shrunk.folder, _("Open {name}").format(name=name))]
    if trainable and _in_workspace(shrunk.folder):
        links.append(project_link(shrunk.folder, _("Fine-tune it"), tab=TABS[TRAIN_TAB]))
    return (
        f'<div role="status"><b class="wb-good">✓ {escape(_("Done"))}</b>: {" · ".join(links)} · '
        f"{escape(_('Export shows both graphs side by side.'))}</div>"
    )


def shrunk_result(shrunk: Shrunk | None, kind: str, *, trainable: bool) -> str:
    """The new project of ``kind`` with its figures and what to do next; empty without one."""
    if shrunk is None or shrunk.kind != kind:
        return ""
    title = {"prune": _("Pruned project"), "decompose": _("Decomposed project")}[kind]
    advice = "".join(
        f"<li>{escape(line)}</li>" for line in shrunk_advice(shrunk, trainable=trainable)
    )
    return (
        f'<h2 class="wb">{escape(title)}</h2>{before_after(shrunk)}{_notes(shrunk)}'
        f'<ul class="wb-muted">{advice}</ul>'
    )


def made_from(origin: Shrunk | None, *, metric: bool = False) -> str:
    """Of a smaller project: what it was made of, with a link; empty of others.

    With ``metric`` also what that cost, which is to be won back.
    """
    if origin is None:
        return ""
    words = {
        "prune": _("This is a pruned model, made of {base}."),
        "decompose": _("This is a decomposed model, made of {base}."),
    }[origin.kind]
    base = project_link(origin.base, Path(origin.base).name)
    cost = ""
    if metric:
        name = origin.metric_name
        before, after = (formats.metric(value, name) for value in origin.metric)
        cost = " " + _("{metric} went from {before} to {after}: fine-tune it.").format(
            metric=formats.metric_title(name) or _("metric"), before=before, after=after
        )
    return f'<div class="wb-info">{escape(words).replace("{base}", base)}{escape(cost)}</div>'


def before_after(shrunk: Shrunk) -> str:
    """Metric, cost and latency of both models as a table."""
    head = "<td></td>" + "".join(
        f'<th class="wb-number">{escape(title)}</th>'
        for title in (_("before"), _("after"), _("change"))
    )
    lines = "".join(
        f"<tr><td>{escape(figure.title)}</td>"
        + "".join(
            f'<td class="wb-number">{escape(text)}</td>'
            for text in (figure.whole, figure.left, figure.ratio)
        )
        + "</tr>"
        for figure in shrunk_figures(shrunk)
    )
    return f'<table class="wb"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'


def figures_html(figures: Iterable[Figure]) -> str:
    """What a model costs now and what would be left of it, as the numbers in the top bar."""
    cells = "".join(
        f'<div class="wb-readout"><dt>{escape(figure.title)}'
        f"{' · ' + escape(figure.note) if figure.note else ''}</dt>"
        f'<dd><span class="wb-from">{escape(figure.whole)} → </span>'
        f"<span>{escape(figure.left)}</span>"
        f'<span class="wb-delta wb-muted">{escape(figure.ratio)}</span></dd></div>'
        for figure in figures
    )
    return f'<dl class="wb-readouts" aria-live="polite">{cells}</dl>'


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
