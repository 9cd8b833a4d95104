"""The part of ``log.py`` that writes the named variants of the configuration again."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from workbench.engine.errors import WorkbenchError
from workbench.studio import variants
from workbench.studio.project import Project, safe_name

Lines = Callable[[pd.DataFrame], list[str]]


def variant_lines(project: Project, table: pd.DataFrame, lines_of: Lines) -> list[str]:
    """Statements that write each variant as a ``ptq.json`` of its own; none where there is none.

    ``lines_of``: statements that write the configuration of a table to the path ``config``. A
    variant that was made for other layers is left out.
    """
    kept = variants.read_kept(project.store.get(variants.KEY))
    if not kept or table.empty:
        return []
    layers = project.store.layers()
    lines = []
    taken: set[str] = set()
    for one in kept:
        try:
            columns = variants.read_variant(project.store, one.name, layers).columns
        except WorkbenchError:
            continue
        name = _free(safe_name(one.name, default="variant"), taken)
        lines.append(f"config = str(variants / {f'{name}.json'!r})")
        changed = table.assign(**{column: list(values) for column, values in columns.items()})
        lines += lines_of(changed)
    head = ['variants = out / "variants"  # the named ones, a configuration each']
    return [*head, "variants.mkdir(exist_ok=True)", *lines] if lines else []


def _free(name: str, taken: set[str]) -> str:
    """``name``, or with a number where another variant's file has it; cases do not count."""
    free, number = name, 1
    while free.lower() in taken:
        number += 1
        free = f"{name}-{number}"
    taken.add(free.lower())
    return free
