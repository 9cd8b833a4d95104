"""Python code named in a project: loaded only where the operator has allowed it."""

from __future__ import annotations

import importlib
import os
import re
import sys
from typing import Any

from workbench.engine.errors import WrongValue
from workbench.studio.errors import CodeNotAllowed

ALLOW_VARIABLE = "WORKBENCH_ALLOW_CODE"

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


def code_allowed() -> bool:
    return os.environ.get(ALLOW_VARIABLE) == "1"


def check_reference(reference: str, *, what: str) -> None:
    """Raise ``WrongValue`` for another form than ``package.module:name``, or ``CodeNotAllowed``."""
    if not _REFERENCE.fullmatch(reference):
        raise WrongValue(f"{reference!r} is not of the form package.module:name", where=what)
    if not code_allowed():
        raise CodeNotAllowed(
            f"{reference!r} is Python code, and loading code is off",
            where=what,
            hint=f"If you trust it, start the command or the server with --allow-code, or set "
            f"{ALLOW_VARIABLE}=1.",
        )


def load_object(reference: str, *, what: str) -> Any:
    """The object that ``package.module:name`` names; modules in the current folder are found, too.

    Errors: ``CodeNotAllowed`` unless code loading is on, ``WrongValue`` if it cannot be imported.
    """
    check_reference(reference, what=what)
    module_name, _, attribute = reference.partition(":")
    here = os.getcwd()
    if here not in sys.path:  # a console script has its own folder there instead
        sys.path.append(here)
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
