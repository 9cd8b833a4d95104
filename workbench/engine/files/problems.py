"""All problems of a file in one exception."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.engine.errors import WrongType, WrongValue


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a file. ``layer`` is empty for a global key."""

    layer: str
    key: str
    value: str
    allowed: str
    is_type: bool = False

    def __str__(self) -> str:
        # Messages of layer-level errors end with the layer's name.
        text = f"{self.key} is {self.value}; allowed: {self.allowed}"
        return f"{text} (layer {self.layer})" if self.layer else text


class ConfigError(WrongValue):
    """Values, names, keys or mixtures that a configuration must not hold."""

    problems: tuple[Problem, ...] = ()


class ConfigTypeError(WrongType):
    """JSON values of the wrong type in a configuration."""

    problems: tuple[Problem, ...] = ()


class ConfigTypeAndValueError(ConfigTypeError, ConfigError):
    """A configuration with both wrong types and wrong values."""


def raise_problems(problems: Sequence[Problem], *, source: str) -> None:
    """Raise one error that lists all ``problems``; do nothing when there is none."""
    if not problems:
        return
    kinds = {problem.is_type for problem in problems}
    error_class = (
        ConfigTypeAndValueError
        if len(kinds) == 2
        else ConfigTypeError
        if kinds == {True}
        else ConfigError
    )
    if len(problems) == 1:
        message = str(problems[0])
    else:
        message = f"{len(problems)} problems\n" + "\n".join(f"- {p}" for p in problems)
    error = error_class(message, where=source)
    error.problems = tuple(problems)
    raise error
