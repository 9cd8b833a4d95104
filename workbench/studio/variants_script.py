"""The part of ``log.py`` that writes the named variants of the configuration again."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from workbench.engine.errors import WorkbenchError
from workbench.studio import variants
from workbench.studio.format_choices import configs_of, default_way
from workbench.studio.formats_state import read_formats
from workbench.studio.project import Project, safe_name

Lines = Callable[[pd.DataFrame], list[str]]


def variant_lines(project: Project, table: pd.DataFrame, lines_of: Lines) -> list[str]:
    """Statements that write each variant as a ``ptq.json`` of its own; none where there is none.

    Where formats were chosen for modules, ``NAME.quantize.json`` has the configurations that
    ``quantize`` takes. ``lines_of``: statements that write the configuration of a table to the path
    ``config``. A variant that was made for other layers is left out.
    """
    kept = variants.read_kept(project.store.get(variants.KEY))
    if not kept:
        return []
    layers = project.store.layers()
    formats = read_formats(project.store.get("formats"))
    kinds = dict(zip(formats["name"], formats["type"], strict=True))
    lines = []
    taken: set[str] = set()
    for one in kept:
        try:
            found = variants.read_variant(project.store, one.name, layers, project.source)
        except WorkbenchError:
            continue
        name = _free(safe_name(one.name, default="variant"), taken)
        if not table.empty:
            lines.append(f"config = str(variants / {f'{name}.json'!r})")
            changed = {column: list(values) for column, values in found.columns.items()}
            lines += lines_of(table.assign(**changed))
        if found.ways:
            lines += _ways_lines(f"{name}.quantize.json", kinds, found.ways, project)
    head = ['variants = out / "variants"  # the named ones, a configuration each']
    return [*head, "variants.mkdir(exist_ok=True)", *lines] if lines else []


def _ways_lines(
    file: str, kinds: dict[str, str], chosen: Mapping[str, str], project: Project
) -> list[str]:
    ways = {name: default_way(name, kind) for name, kind in kinds.items()} | dict(chosen)
    batches = int(project.store.get("batch_num") or project.settings.data.calibration_batches)
    configs = [f"    {config!r}," for config in configs_of(ways, batches)]
    return [
        "modules = [", *configs, "]",
        f"(variants / {file!r}).write_text(json.dumps(modules, indent=4))",
    ]  # fmt: skip


def _free(name: str, taken: set[str]) -> str:
    """``name``, or with a number where another variant's file has it; cases do not count."""
    free, number = name, 1
    while free.lower() in taken:
        number += 1
        free = f"{name}-{number}"
    taken.add(free.lower())
    return free
