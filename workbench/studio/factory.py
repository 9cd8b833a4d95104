"""A model that Python code makes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.engine.errors import MissingFile, WrongType, WrongValue
from workbench.studio.source_spec import SourceSpec


@dataclass(frozen=True)
class Factory:
    """A function that makes the model, as source for ``workbench.open``, where code is allowed.

    ``name``: ``package.module:factory``. ``arguments``: its keyword arguments, of values that JSON
    has. ``weights``: the path of a ``.safetensors`` file or of a state dict, read with
    ``weights_only``; without it the weights are those that the function gives.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: str | os.PathLike[str] = ""

    @property
    def title(self) -> str:
        return self.name.rsplit(":", 1)[-1]

    @property
    def spec(self) -> SourceSpec:
        """What a project keeps of it; its name is checked where it is loaded or asked for.

        Errors: ``WrongType`` for arguments that are no mapping of texts or cannot be kept;
        ``MissingFile``.
        """
        if not isinstance(self.arguments, Mapping) or not all(
            isinstance(key, str) and key.isidentifier() for key in self.arguments
        ):
            raise WrongType(
                f"arguments is {self.arguments!r}; allowed: a mapping of names to values",
                where="source.arguments",
            )
        weights = ""
        if self.weights:
            path = Path(self.weights).expanduser().absolute()
            if not path.is_file():
                raise MissingFile(
                    "there is no such file", where=str(path), hint="Check the path of the weights."
                )
            weights = str(path)
        return SourceSpec("python", self.name, dict(self.arguments), weights)


def read_arguments(text: str) -> dict[str, Any]:
    """Keyword arguments written as a JSON object; an empty text: none. Error: ``WrongValue``."""
    if not text.strip():
        return {}
    hint = 'Write an object of keyword arguments: {"width": 32}.'
    try:
        found = json.loads(text)
    except ValueError as error:
        raise WrongValue(f"{text!r} is no JSON ({error})", where="arguments", hint=hint) from error
    if not isinstance(found, dict):
        raise WrongValue(f"{text!r} is no JSON object", where="arguments", hint=hint)
    return found
