"""The part of ``log.py`` that trains again as the project's last training did."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from workbench.engine.flows.training_settings import TrainingSettings
from workbench.studio.columns import trainable
from workbench.studio.project import Project, safe_name
from workbench.studio.search_script import Option, open_lines, option_lines
from workbench.studio.store import layer_from_json
from workbench.studio.training_state import KEY

COLUMNS = ("retrain_enable", "channel_wise", "act_bits", "wts_bits")
"""Columns of the Layers table that a training depends on."""


def columns_hash(columns: Mapping[str, Sequence[Any]]) -> str:
    """Equal for tables that train the same."""
    rows = [[_plain(value) for value in columns[name]] for name in COLUMNS]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def training_lines(project: Project, table: pd.DataFrame, options: Sequence[Option]) -> list[str]:
    """Statements that train and export again; the table must still be as it was trained.

    ``options``: settings that differ from the generated configuration.
    """
    facts = project.store.get(KEY) or {}
    if not facts.get("finished") or table.empty:
        return []
    if facts.get("columns") != columns_hash({name: table[name].tolist() for name in COLUMNS}):
        return []
    method, asked = str(facts["method"]), facts["asked"]
    needed = [option for option in options if option[1] in COLUMNS]
    lines, train = _train_lines(project, asked)
    name = f"{safe_name(project.settings.name)}_{method}"
    return [
        "",
        *lines,
        *open_lines(project, "training", [*train]),
        *option_lines(needed),
        *_flag_lines(project, table),
        f"session.train({', '.join(_arguments(asked))})",
        f"session.export(str(out / {name!r}), method={method!r})",
    ]


def _train_lines(project: Project, asked: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(statements before, arguments of ``open_session``) for data and objects of the user."""
    lines, arguments = [], []
    spec = project.settings.train
    if spec.kind == "live":
        lines.append(f"train = ...  # fill in: the {spec.name} with the training data")
        arguments.append("train=train")
    elif spec.kind in ("npz", "python"):
        arguments.append(f"train={spec.name!r}")
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
    usual = [trainable(layer_from_json(row[0])) for row in rows]
    off = [
        str(name)
        for name, on, by_default in zip(table["name"], table["retrain_enable"], usual, strict=True)
        if by_default and not on
    ]
    return [f"session.set_flag({off!r}, False, 'retrain_enable')"] if off else []


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
