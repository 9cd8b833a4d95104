"""The part of ``log.py`` that trains again as the project's last training did."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from workbench.engine.flows.training_settings import TrainingSettings
from workbench.studio.columns import DEFAULT_RATIO, trainable
from workbench.studio.graph_names import graph_lines
from workbench.studio.image_settings import folder_text
from workbench.studio.project import Project, safe_name
from workbench.studio.search_script import Option, open_lines, option_lines
from workbench.studio.store import layer_from_json
from workbench.studio.training_state import KEY

QUANTISED = ("retrain_enable", "channel_wise", "act_bits", "wts_bits")
PRUNED = ("prune_enable", "prune_ratio")
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "qat": QUANTISED,
    "distill": QUANTISED,
    "finetune": (),
    "sparse": PRUNED,
    "compressed": (*QUANTISED, *PRUNED),
}
"""Columns of the Layers table that a training by each method depends on."""


def columns_hash(columns: Mapping[str, Sequence[Any]], method: str) -> str:
    """Equal for tables that train the same."""
    rows = [[_plain(value) for value in columns[name]] for name in COLUMNS[method]]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def training_lines(project: Project, table: pd.DataFrame, options: Sequence[Option]) -> list[str]:
    """Statements that train and export again; the table must still be as it was trained.

    ``options``: settings that differ from the generated configuration.
    """
    facts = project.store.get(KEY) or {}
    if not facts.get("finished") or table.empty:
        return []
    method, asked = str(facts["method"]), facts["asked"]
    columns = COLUMNS[method]
    if facts.get("columns") != columns_hash({n: table[n].tolist() for n in columns}, method):
        return []
    needed = [option for option in options if option[1] in columns]
    lines, train = train_lines(project, asked)
    name = f"{safe_name(project.settings.name)}_{method}"
    return [
        "",
        *lines,
        *open_lines(project, "training", [*train]),
        *option_lines(needed),
        *(_flag_lines(project, table) if "retrain_enable" in columns else ()),
        *(_prune_lines(table) if "prune_enable" in columns else ()),
        f"session.train({', '.join(_arguments(asked))})",
        *graph_lines(project.store),
        f"session.export(str(out / {name!r}), method={method!r})",
    ]


def train_lines(project: Project, asked: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(statements before, arguments of ``open_session``) for data and objects of the user."""
    lines, arguments = [], []
    spec = project.settings.train
    if spec.kind == "live":
        lines.append(f"train = ...  # fill in: the {spec.name} with the training data")
        arguments.append("train=train")
    elif spec.kind in ("npz", "python"):
        arguments.append(f"train={spec.name!r}")
    elif spec.kind == "folder":
        lines.append("from workbench.studio import ImageFolder")
        arguments.append(f"train={folder_text(spec.name, spec.images)}")
    own = [name for name in ("recipe", "loop") if asked.get(name) and ":" not in asked[name]]
    lines += [f"{name} = ...  # fill in: {asked[name]}" for name in own]
    return lines, arguments


def _arguments(asked: Mapping[str, Any]) -> list[str]:
    """Of ``Session.train``, as far as they are not its defaults."""
    usual = vars(TrainingSettings())
    values = {
        "method": asked["method"], "batch_size": asked.get("batch_size"),
        "samples": asked.get("samples"), "loss": asked.get("loss"),
    }  # fmt: skip
    found = [f"{name}={value!r}" for name, value in values.items() if value is not None]
    found += [f"{name}={value!r}" for name, value in (asked.get("compression") or {}).items()]
    settings = asked.get("settings") or {}
    found += [
        f"{name}={value!r}"
        for name, value in settings.items()
        if name in ("epochs", "learning_rate") or value != usual.get(name)
    ]
    for name in ("recipe", "loop"):
        if asked.get(name):
            found.append(f"{name}={asked[name]!r}" if ":" in asked[name] else f"{name}={name}")
    return found


def _flag_lines(project: Project, table: pd.DataFrame) -> list[str]:
    rows = project.store.connection.execute("SELECT info FROM layers ORDER BY idx").fetchall()
    usual = [trainable(layer_from_json(row[0]), project.source) for row in rows]
    off = [
        str(name)
        for name, on, by_default in zip(table["name"], table["retrain_enable"], usual, strict=True)
        if by_default and not on
    ]
    return [f"session.set_flag({off!r}, False, 'retrain_enable')"] if off else []


def _prune_lines(table: pd.DataFrame) -> list[str]:
    ticked = table[table["prune_enable"]]
    if ticked.empty:
        return []
    lines = [f"session.set_flag({ticked['name'].tolist()!r}, True, 'prune_enable')"]
    for ratio, rows in ticked.groupby("prune_ratio", sort=False):
        if ratio != DEFAULT_RATIO:
            lines.append(
                f"session.set_option({rows['name'].tolist()!r}, 'prune_ratio', {float(ratio)!r})"
            )
    return lines


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
