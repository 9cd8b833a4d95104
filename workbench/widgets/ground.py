"""Light or dark: the ground of the notebook's page, as its charts report it, and who follows it.

A chart is coloured here, but only the page knows its theme, and it is not heard while a cell runs.
What it said last is therefore kept for the next kernel: ``notebook-theme`` in the workspace.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from pathlib import Path
from typing import Protocol

from workbench.engine.files.atomic import write_text
from workbench.netron_server.registry import home

logger = logging.getLogger("workbench.widgets")

SCRIPT = Path(__file__).with_name("ground.js")
"""Begins the script of each widget that reports the ground."""


class Follower(Protocol):
    def ground_changed(self) -> None: ...


_heard: bool | None = None
_followers: weakref.WeakSet[Follower] = weakref.WeakSet()


def dark() -> bool:
    """Whether the notebook is dark, as far as is known; light before any page has said."""
    global _heard
    if _heard is None:
        try:
            _heard = _file().read_text(encoding="utf-8").strip() == "dark"
        except (OSError, UnicodeDecodeError):
            _heard = False
    return _heard


def heard(is_dark: bool) -> None:
    """The page says on what it stands: all that follow it are drawn again if that is new."""
    global _heard
    if is_dark == dark():
        return
    _heard = is_dark
    with contextlib.suppress(OSError):
        write_text(_file(), "dark\n" if is_dark else "light\n")
    for follower in list(_followers):
        try:
            follower.ground_changed()
        except Exception:
            logger.exception("%s could not follow the theme", type(follower).__name__)


def follow(follower: Follower) -> None:
    _followers.add(follower)


def leave(follower: Follower) -> None:
    _followers.discard(follower)


def _file() -> Path:
    return home() / "notebook-theme"
