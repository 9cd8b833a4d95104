"""The part of ``log.py`` that runs the project's last search again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.studio.image_settings import folder_text
from workbench.studio.kept_weights import current
from workbench.studio.metrics import BUILT_IN
from workbench.studio.pins import as_pins
from workbench.studio.project import Project

if TYPE_CHECKING:
    from workbench.studio.figures import Figures

IMPORTS = ("import sys", "from workbench.studio import open_session")
Option = tuple[str, str, Any]
"""Layer, column, value."""


def search_lines(project: Project, figures: Figures, options: Sequence[Option]) -> list[str]:
    """Statements that find ``skip`` again when the script is run with ``--search``.

    Empty unless the configuration is the answer of the project's last search as it stands.
    ``options``: settings that differ from the generated configuration.
    """
    asked = project.store.get("search") or {}
    if not asked.get("answer") or asked["answer"] != figures.hash():
        return []
    if asked["strategy"] == "Pareto":
        # Its answer is more than layers to skip; the script names all of it anyway.
        return []
    arguments = ", ".join(
        f"{key}={asked[key]!r}" for key in ("max_loss", "strategy", "sensitivity")
    )
    lines = [
        *open_lines(project, "search"),
        *option_lines(options),
        *_pin_lines(as_pins(asked.get("pins"))),
        f"session.auto_calibrate({arguments})",
        'skip = session.layers.query("eligible and not quant_enable")["name"].tolist()',
    ]
    head = 'if "--search" in sys.argv:  # as auto-calibration found them'
    return [head, *(f"    {line}" for line in lines)]


def open_lines(project: Project, folder: str, more: Sequence[str] = ()) -> list[str]:
    """Statements that open the project's model and data again, in ``folder`` of ``out``."""
    settings = project.settings
    source, data = settings.source.base, settings.data
    lines: list[str] = []
    if settings.source.kind == "shrunk":
        lines += [
            "from workbench.studio.shrinking import fresh_copy",
            f'fresh_copy({str(project.folder)!r}, out / "{folder}")',
        ]
        if source.kind != "live":
            lines.append(f'session = open_session(out / "{folder}")')
            return [*lines, *_weight_lines(project)]
    model = repr(source.name) if source.kind in ("zoo", "python") else "model"
    if source.kind == "python" and (source.arguments or source.weights):
        lines.append("from workbench.studio import Factory")
        weights = str(project.folder / source.weights) if source.weights else ""
        model = f"Factory({source.name!r}, {dict(source.arguments)!r}, {weights!r})"
    if settings.source.kind == "shrunk":
        model = "base"
    arguments = [model]
    if data.kind == "stored":
        path = str(project.data_path)
        lines += [
            "from workbench.studio.batches import read_stored",
            f"stored = read_stored(Path({path!r}))",
            "evaluation = [x.inputs if x.target is None else (x.inputs, x.target) "
            "for x in stored.evaluation]",
        ]
        arguments.append('{"calibration": stored.calibration, "evaluation": evaluation}')
    elif data.kind == "folder":
        lines.append("from workbench.studio import ImageFolder")
        path = str(project.folder / Path(data.name).expanduser())
        arguments.append(folder_text(path, data.images))
    elif data.kind == "npz":
        arguments.append(repr(str(project.folder / Path(data.name).expanduser())))
    elif data.kind == "python":
        arguments += [repr(data.name)]
    if data.kind != "zoo":
        arguments += [
            f"batch_size={data.batch_size}", f"calibration_batches={data.calibration_batches}"
        ]  # fmt: skip
    if settings.metric in BUILT_IN or ":" in settings.metric:
        arguments.append(f"metric={settings.metric!r}")
    elif settings.metric:
        lines.append(f"metric = ...  # fill in: the function {settings.metric}")
        arguments.append("metric=metric")
    arguments += [*more, f'project=out / "{folder}"', f"threads={settings.threads}"]
    if settings.seed:
        arguments.append(f"seed={settings.seed}")
    lines.append(f"session = open_session({', '.join(arguments)})")
    return [*lines, *_weight_lines(project)]


def _weight_lines(project: Project) -> list[str]:
    weights = current(project)
    return [] if weights is None else [f"session.use_weights({str(weights)!r})"]


def option_lines(options: Sequence[Option]) -> list[str]:
    """Statements that give a session's layers these settings."""
    groups: dict[tuple[str, Any], list[str]] = {}
    for name, column, value in options:
        groups.setdefault((column, value), []).append(name)
    return [
        f"session.set_option({names!r}, {column!r}, {value!r})"
        for (column, value), names in groups.items()
    ]


def _pin_lines(pins: Mapping[str, bool]) -> list[str]:
    groups: dict[bool, list[str]] = {}
    for name, on in pins.items():
        groups.setdefault(on, []).append(name)
    return [f"session.pin({names!r}, {on})" for on, names in groups.items()]
