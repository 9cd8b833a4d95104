"""JSON with repeated keys found and non-standard numbers refused."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from workbench.engine.errors import WrongValue
from workbench.engine.files.problems import Problem


class JsonSyntaxError(WrongValue, json.JSONDecodeError):
    """Text that is not JSON; also the JSON parser's own error."""

    def __init__(self, msg: str, doc: str, pos: int, source: str = "") -> None:
        json.JSONDecodeError.__init__(self, msg, doc, pos)
        self.message = str(self)
        self.where = source
        self.hint = ""
        self.args = (f"{source}: {self.message}" if source else self.message,)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.msg, self.doc, self.pos, self.where)


def load_json(text: str, *, source: str) -> tuple[Any, list[str]]:
    """The parsed value, and every key that an object at any depth holds twice."""
    repeated: list[str] = []

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                repeated.append(key)
            result[key] = value
        return result

    def refuse(constant: str) -> NoReturn:
        raise JsonSyntaxError(
            f"{constant} is not a JSON number", text, max(text.find(constant), 0), source
        )

    try:
        return json.loads(text, object_pairs_hook=to_dict, parse_constant=refuse), repeated
    except JsonSyntaxError:
        raise
    except json.JSONDecodeError as error:
        raise JsonSyntaxError(error.msg, error.doc, error.pos, source) from None


def duplicate_keys(repeated: list[str]) -> list[Problem]:
    return [
        Problem("", repr(key), "given more than once", "each key once in its object")
        for key in dict.fromkeys(repeated)
    ]
