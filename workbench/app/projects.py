"""Where projects of the app live, and getting or creating the one a page was asked for."""

from __future__ import annotations

import os
from pathlib import Path

from workbench.app.i18n import _
from workbench.engine.errors import MissingFile, WrongValue
from workbench.studio.project import is_project, safe_name
from workbench.studio.session import Session

DEFAULT_EXAMPLE = "digits-mobilenet-hard"


def home() -> Path:
    """The workspace root: ``WORKBENCH_HOME`` or ``~/.local/share/compression-workbench``."""
    given = os.environ.get("WORKBENCH_HOME")
    return Path(given) if given else Path.home() / ".local" / "share" / "compression-workbench"


def projects_folder() -> Path:
    return home() / "projects"


def project_names() -> list[str]:
    """Projects in the workspace, the one changed last first."""
    folder = projects_folder()
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if is_project(path)]
    return [path.name for path in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)]


def example_names() -> tuple[str, ...]:
    from workbench import zoo

    return tuple(zoo.names())


def project_folder(name: str, where: str = "?project=") -> Path:
    """The folder of the project called ``name``; ``WrongValue`` for anything but a plain name.

    ``where``: the field, or the part of the address, that the name was read from.
    """
    if not name or safe_name(name) != name:
        raise WrongValue(
            _("“{name}” is not the name of a project").format(name=name[:80]),
            where=where,
            hint=_("Letters, digits, spaces, dots, hyphens and underscores are allowed."),
        )
    root = projects_folder().resolve()
    folder = (root / name).resolve()
    if folder.parent != root:
        raise WrongValue(
            _("“{name}” lies outside the workspace").format(name=name),
            where=where,
            hint=_("Open a project from the list."),
        )
    return folder


def open_project(name: str) -> Session:
    """A session on the project ``name``: an existing one, or a new one of the example ``name``.

    Errors: ``WrongValue`` for a name that is not allowed, ``MissingFile`` when there is neither a
    project nor an example of that name.
    """
    from workbench.studio import open_session

    folder = project_folder(name)
    if is_project(folder):
        return open_session(folder, in_process=False)
    if name not in example_names():
        raise MissingFile(
            _("there is no project “{name}”").format(name=name),
            where="?project=",
            hint=_("Choose one from the list, or start from an example."),
        )
    return open_session(name, project=folder, in_process=False)
