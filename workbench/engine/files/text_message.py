"""Protobuf text read into a message, with errors that name the file and the line."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import text_format

from workbench.engine.errors import WrongValue
from workbench.engine.files.problems import Problem


class TextConfigError(WrongValue, text_format.ParseError):  # type: ignore[misc]
    """Text that is not a configuration; also protobuf's own ``ParseError``."""


def merge_text(text: str, message: Any, *, source: str) -> None:
    """Read ``text`` into ``message``; ``TextConfigError`` naming ``source`` and the line.

    A required field that is missing is no error here: ``required_problems`` finds it.
    """
    try:
        # Merge, not Parse: in a oneof the last member given wins.
        text_format.Merge(text, message)
    except text_format.ParseError as error:
        line = error.GetLine() or 1
        reason = re.sub(r"^\d+:\d+ : ", "", str(error))
        raise TextConfigError(reason, where=f"{source}, line {line}") from None


def required_problems(message: Any) -> list[Problem]:
    """The required fields that ``message`` lacks."""
    return [
        Problem("", field, "missing", "a value; the field is required")
        for field in message.FindInitializationErrors()
    ]
