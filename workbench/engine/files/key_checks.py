"""Checks of single JSON values: kind, range, unknown keys; every problem is collected."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.engine.files.problems import Problem

Kind = str  # "int", "bool", "float", "str", "pair" or "names"


@dataclass(frozen=True)
class Field:
    """A key: its JSON type, the values allowed in words, and the test for them."""

    kind: Kind
    allowed: str
    fits: Callable[[Any], bool] = lambda _value: True


def one_of(kind: Kind, *values: Any) -> Field:
    return Field(kind, ", ".join(str(v) for v in values), lambda value: value in values)


SWITCH = Field("bool", "true, false")

_KIND_WORDS = {
    "int": "a whole number",
    "bool": "true or false",
    "float": "a number",
    "str": "a string",
    "pair": "a list of two numbers",
    "names": "a list of strings",
}


def repeated_names(key: str, names: Sequence[str]) -> list[Problem]:
    counts = Counter(names)
    return [
        Problem("", key, f"{name!r} twice", "each name once")
        for name, count in counts.items()
        if count > 1
    ]


class KeyChecker:
    """Checks values against fields; what is wrong goes to ``problems``."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def check(self, name: str, key: str, value: Any, spec: Field) -> Any:
        """The value in our own type, or None after noting what is wrong with it.

        ``name``: the layer it belongs to, '' for none.
        """
        if not _has_kind(value, spec.kind):
            words = _KIND_WORDS[spec.kind]
            allowed = spec.allowed if spec.kind == "bool" else f"{words} ({spec.allowed})"
            self.add(name, key, value, allowed, is_type=True)
            return None
        numbers = {"float": [value], "pair": value}.get(spec.kind, [])
        if (
            (spec.kind == "pair" and len(value) != 2)
            or not all(abs(number) <= sys.float_info.max for number in numbers)
            or not spec.fits(value)
        ):
            self.add(name, key, value, spec.allowed)
            return None
        if spec.kind == "float":
            return float(value)
        if spec.kind == "pair":
            return (float(value[0]), float(value[1]))
        return tuple(value) if spec.kind == "names" else value

    def section(
        self, name: str, section: str, value: Any, fields: Mapping[str, Field]
    ) -> dict[str, Any]:
        """The valid keys of an object inside a layer's entry."""
        if not isinstance(value, dict):
            self.add(name, section, value, "an object", is_type=True)
            return {}
        self.unknown_keys(name, f"{section}.", value, tuple(fields))
        result = {}
        for key, item in value.items():
            if key in fields:
                checked = self.check(name, f"{section}.{key}", item, fields[key])
                if checked is not None:
                    result[key] = checked
        return result

    def unknown_keys(
        self, name: str, prefix: str, value: Mapping[str, Any], known: Sequence[str]
    ) -> None:
        self.problems += [
            Problem(name, f"{prefix}{key}", "an unknown key", ", ".join(known))
            for key in value
            if key not in known
        ]

    def add(self, name: str, key: str, value: Any, allowed: str, *, is_type: bool = False) -> None:
        text = repr(value)
        shown = text if len(text) <= 80 else f"{text[:77]}..."
        self.problems.append(Problem(name, key, shown, allowed, is_type))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _has_kind(value: Any, kind: Kind) -> bool:
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "float":
        return _is_number(value)
    if kind == "str":
        return isinstance(value, str)
    if kind == "pair":
        return isinstance(value, list) and all(_is_number(item) for item in value)
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
