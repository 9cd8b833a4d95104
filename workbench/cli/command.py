"""What a command is: its options, the call of the session, what it says of the result."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.studio.session import Session

Result = dict[str, Any]


@dataclass(frozen=True)
class Option:
    """One option of a command, as ``argparse`` takes it."""

    flag: str
    settings: Mapping[str, Any]

    def add_to(self, command: argparse.ArgumentParser) -> None:
        command.add_argument(self.flag, **self.settings)


@dataclass(frozen=True)
class Command:
    """``act`` runs the job; ``result`` reads what it found: ``ok`` False is a missed target.

    ``words``: the result for a person, one line each; None: as most commands do.
    """

    help: str
    act: Callable[[Session, argparse.Namespace], None]
    result: Callable[[Session, argparse.Namespace], Result]
    options: tuple[Option, ...] = field(default=())
    words: Callable[[Result], str] | None = None
