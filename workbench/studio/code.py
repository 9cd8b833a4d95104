"""Python code named in a project: loaded only where the operator has allowed it."""

from __future__ import annotations

import importlib
import os
import re
from typing import Any

from workbench.engine.errors import WrongValue
from workbench.studio.errors import CodeNotAllowed

ALLOW_VARIABLE = "WORKBENCH_ALLOW_CODE"

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


def code_allowed() -> bool:
    return os.environ.get(ALLOW_VARIABLE) == "1"


def load_object(reference: str, *, what: str) -> Any:
    """The object that ``package.module:name`` names.

    Errors: ``CodeNotAllowed`` unless code loading is on, ``WrongValue`` if it cannot be imported.
    """
    if not _REFERENCE.fullmatch(reference):
        raise WrongValue(f"{reference!r} is not of the form package.module:name", where=what)
    if not code_allowed():
        raise CodeNotAllowed(
            f"{reference!r} is Python code, and loading code is off",
            where=what,
            hint=f"If you trust it, start the command or the server with --allow-code, or set "
            f"{ALLOW_VARIABLE}=1.",
        )
    module_name, _, attribute = reference.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise WrongValue(
            f"{reference!r} cannot be loaded ({error})",
            where=what,
            hint="Check the name, and that the module can be imported from where you started.",
        ) from error
    return found
