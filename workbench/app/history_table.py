"""Rows of the history as text: what ran, what came of it, and the details of one row."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from workbench.app.export_tab import export_result
from workbench.app.html import escape
from workbench.app.i18n import _, ngettext
from workbench.charts import formats
from workbench.charts.spoken import said
from workbench.charts.words import job_noun, job_state, method_title, trial_kinds
from workbench.studio.history import RESULTS
from workbench.studio.results import read_exports

WIDTHS = {
    "what": 86, "kind": 112, "of": 128, "when": 128, "state": 92, "metric": 76, "loss": 76,
    "size": 80, "bops": 92, "n_float": 96, "seconds": 84, "details": 400,
}  # fmt: skip

SORTS = ("newest", "metric", "loss", "size", "bops")


def row_kinds() -> dict[str, str]:
    """What the kinds of rows are called."""
    return {
        **trial_kinds(),
        "export": _("export"),
        "train": _("training"),
        "quantize": _("quantised folder"),
        "prune": _("pruning"),
        "decompose": _("decomposition"),
    }


MARKS = {"finished": "✓ ", "failed": "✕ ", "cancelled": "– "}


def row_name(key: str) -> str:
    """``trial 3`` and ``job 12`` in the user's language."""
    what, _space, number = key.partition(" ")
    text = _("trial {number}") if what == "trial" else _("job {number}")
    return text.format(number=number)


def job_name(kind: str, job: int) -> str:
    """``search · job 3``."""
    number = _("job {number}").format(number=job)
    return f"{job_noun(kind)} · {number}" if kind else number


def chosen_rows(
    table: pd.DataFrame, *, kind: str = "", job: int = 0, text: str = "", sort: str = "newest"
) -> pd.DataFrame:
    """Rows of a kind, a job (0: all) and with ``text`` in what is shown of them, sorted."""
    if kind:
        table = table[table["kind"] == kind]
    if job:
        table = table[table["job"] == job]
    if text.strip() and len(table):
        wanted = text.strip().casefold()
        shown = [
            " ".join((row_name(row["key"]), row_kinds().get(row["kind"], ""), details(row)))
            for row in table.to_dict("records")
        ]
        table = table[[wanted in one.casefold() for one in shown]]
    newest = table.iloc[::-1]
    if sort == "newest":
        return newest
    # Stable, so that equal rows stay newest first; what has no such figure comes last.
    return newest.sort_values(sort, ascending=sort != "metric", kind="stable", na_position="last")


def history_frame(table: pd.DataFrame, metric_name: str) -> pd.DataFrame:
    """The rows as text, in their order."""
    named = row_kinds()
    rows = [
        {
            "what": row_name(row["key"]),
            "kind": named.get(row["kind"], row["kind"]),
            "of": job_name(row["job_kind"], row["job"]),
            "when": moment(row["time"]),
            "state": MARKS.get(row["state"], "▶ ") + job_state(row["state"]),
            "metric": formats.metric(row["metric"], metric_name),
            "loss": formats.loss(row["loss"], metric_name),
            "size": formats.size(row["size"]),
            "bops": formats.bit_operations(row["bops"]),
            "n_float": count(row["n_float"]),
            "seconds": seconds_text(row["seconds"]),
            "details": details(row),
        }
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(rows, columns=list(WIDTHS), dtype=object)


def moment(seconds: float) -> str:
    """A point in time in the server's zone; a dash where it is not known."""
    if not seconds:
        return formats.UNKNOWN
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def seconds_text(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else formats.duration(seconds)


def count(value: float) -> str:
    return formats.UNKNOWN if value != value else f"{value:.0f}"


def details(row: Mapping[str, Any]) -> str:
    """One line: the layers left float, the files written, what a training was asked, the error."""
    if row["error"]:
        return said(str(row["error"]))
    if row["kind"] == "train":
        asked = row["asked"]
        named = {"method": "", "epochs": _("epochs"), "learning_rate": _("learning rate")}
        return ", ".join(
            f"{title} {asked[name]}" if title else method_title(str(asked[name]))
            for name, title in named.items()
            if asked.get(name) is not None
        )
    if row["kind"] in ("prune", "decompose") and row["facts"]:
        return _("project {name}").format(name=row["facts"]["name"])
    if row["kind"] in RESULTS:
        return ", ".join(path.replace("\\", "/").rpartition("/")[2] for path in row["files"])
    if row["kind"] == "float":
        return _("all layers float")
    names = ", ".join(row["float_layers"])
    return _("float: {names}").format(names=names) if names else _("no layer float")


def row_details(row: Mapping[str, Any], metric_name: str) -> str:
    """Everything that is known of one row, as HTML."""
    title = f"{row_name(row['key'])} · {row_kinds().get(row['kind'], row['kind'])}"
    text = f'<h2 class="wb">{escape(title)}</h2>'
    if row["error"]:
        return text + f'<div class="wb-notice">✕ {escape(said(row["error"]))}</div>'
    if row["kind"] == "export" and row["facts"]:
        result = read_exports(row["facts"])
        assert result is not None
        gone = {file.path for file in result.files} - set(row["files"])
        return text + export_result(result, metric_name, gone=gone)
    lines = _trial_lines(row) if row["kind"] not in RESULTS else _asked_lines(row["asked"])
    if row["kind"] in ("prune", "decompose") and row["facts"]:
        lines = [*_shrunk_lines(row["facts"]), *lines]
    body = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in lines
    )
    return text + f'<table class="wb">{body}</table>' if body else text


def _trial_lines(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = [(_("left float"), ", ".join(row["float_layers"]) or _("none"))]
    settings = row["settings"] or {}
    lines += [
        (name, ", ".join(f"{column} {value}" for column, value in own.items()))
        for name, own in settings.items()
    ]
    if row["share"] == row["share"] and row["share"] < 1:
        lines.append((_("samples evaluated"), f"{100 * row['share']:.1f} %"))
    return lines


def _shrunk_lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = (
        (_("parameters"), "parameters", formats.count), ("MAC", "macs", formats.count),
        (_("size"), "bytes", formats.size),
    )  # fmt: skip
    return [
        (title, " → ".join(text(float(value)) for value in facts[key]))
        for title, key, text in pairs
    ]


def _asked_lines(asked: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for name, value in asked.items():
        if isinstance(value, Mapping):
            lines += _asked_lines(value)
        elif value not in (None, "", False, []):
            lines.append((name, str(value)))
    return lines


def confirmation(count: int, files: Collection[Any], kept: Collection[Any]) -> str:
    """What is about to be deleted, in words, as HTML."""
    sentence = ngettext(
        "{n} row of the history is deleted.", "{n} rows of the history are deleted.", count
    ).format(n=count)
    text = f"<p>{escape(sentence)}"
    if files:
        also = _("These go with it, out of the project folder:")
        text += f"<br>{escape(also)}</p>{_names(files)}"
    else:
        text += "</p>"
    if kept:
        also = _("These stay, because they lie outside the project folder:")
        text += f"<p>{escape(also)}</p>{_names(kept)}"
    return text + f"<p><b>{escape(_('This cannot be undone.'))}</b></p>"


def _names(paths: Collection[Any]) -> str:
    shown = [f"<li>{escape(path.name)}</li>" for path in list(paths)[:12]]
    if len(paths) > 12:
        more = _("and {count} more").format(count=len(paths) - 12)
        shown.append(f"<li>{escape(more)}</li>")
    return f"<ul>{''.join(shown)}</ul>"
