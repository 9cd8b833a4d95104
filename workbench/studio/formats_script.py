"""The part of ``log.py`` that quantises the modules again as it was last done."""

from __future__ import annotations

from workbench.studio.formats_state import read_quantized
from workbench.studio.project import Project
from workbench.studio.search_script import open_lines


def formats_lines(project: Project) -> list[str]:
    """Statements that quantise, measure and write; none when it was never done."""
    found = read_quantized(project.store.get("quantized"))
    if found is None:
        return []
    return [
        "",
        *open_lines(project, "modules"),
        "modules = [",
        *(f"    {config!r}," for config in found.configs),
        "]",
        f"session.quantize_modules(modules, float_type={found.float_type!r})",
    ]
