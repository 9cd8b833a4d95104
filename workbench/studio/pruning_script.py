"""The part of ``log.py`` that makes the smaller project again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.studio.project import Project
from workbench.studio.search_script import open_lines, option_lines
from workbench.studio.training_script import train_lines

_OPTIONS = {
    "include": None, "exclude": None, "rank_rule": "compat", "energy": 0.9, "max_error": None,
    "min_gain": 0.0, "method": "gram", "balance": False,
}  # fmt: skip
_SEARCH = {"sensitivity": "taylor", "batches": None, "max_ratio": 0.8, "aligned": False}


def shrink_lines(project: Project, table: pd.DataFrame) -> list[str]:
    """Statements that prune or decompose again as the project's last such job did.

    Of a pruning: empty when the table says something else by now.
    """
    facts = project.store.get("shrunk") or {}
    if not facts or table.empty:
        return []
    asked, name = facts["asked"], Path(str(facts["folder"])).name
    if facts["kind"] == "decompose":
        arguments = [*_changed(asked["options"], _OPTIONS), f"project=str(out / {name!r})"]
        last = [f"session.decompose({', '.join(arguments)})"]
    else:
        chosen = table[table["prune_enable"]]
        ratios = dict(zip(chosen["name"], chosen["prune_ratio"].tolist(), strict=True))
        if ratios != asked["ratios"]:
            return []
        last = _prune_lines(asked, name)
    before, train = train_lines(project, {}) if asked.get("search") else ([], [])
    return ["", *before, *open_lines(project, str(facts["kind"]), train), *last]


def _prune_lines(asked: Mapping[str, Any], name: str) -> list[str]:
    ratios, search = asked["ratios"], asked.get("search")
    lines = []
    if search:
        lines.append(f"session.search_pruning({', '.join(_changed(search, _SEARCH))})")
    lines.append(f"session.set_flag({list(ratios)!r}, True, 'prune_enable')")
    lines += option_lines([(layer, "prune_ratio", ratio) for layer, ratio in ratios.items()])
    arguments = [f"project=str(out / {name!r})", f"aligned={asked['aligned']!r}"]
    if not search:
        arguments.append("channels='l2'")
    return [*lines, f"session.prune({', '.join(arguments)})"]


def _changed(given: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value!r}" for key, value in given.items() if value != usual.get(key)]
