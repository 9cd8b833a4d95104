"""Checks of public arguments: a wrong type names the function, the argument and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from workbench.engine.errors import WrongState, WrongType, WrongValue

_LONGEST_NAME = 254


def check_type(
    function: str, argument: str, value: Any, *allowed: type, optional: bool = False
) -> None:
    """Raise ``WrongType`` unless ``value`` is of one of the ``allowed`` types (bool is no int)."""
    if optional and value is None:
        return
    ok = isinstance(value, allowed) and not (isinstance(value, bool) and bool not in allowed)
    if not ok:
        names = " or ".join(t.__name__ for t in allowed) + (" or None" if optional else "")
        raise WrongType(
            f"{argument} must be {names}, it is {type(value).__name__}", where=f"{function}()"
        )


def check_model(function: str, model: Any) -> None:
    check_type(function, "model", model, nn.Module)


def check_path(function: str, argument: str, value: Any) -> None:
    """A file name: a non-empty string that does not end in a slash, at most 254 characters long."""
    check_type(function, argument, value, str)
    if not value or value.endswith("/"):
        raise WrongValue(f"{argument} is {value!r}; it must name a file", where=f"{function}()")
    if len(Path(value).name) > _LONGEST_NAME:
        raise WrongValue(
            f"{argument}: the file name has {len(Path(value).name)} characters; "
            f"allowed: {_LONGEST_NAME}",
            where=f"{function}()",
        )


def check_names(function: str, argument: str, names: Any) -> None:
    """A list of strings, or None."""
    check_type(function, argument, names, list, optional=True)
    for name in names or ():
        if not isinstance(name, str):
            raise WrongType(
                f"{argument} must hold strings only, it holds {name!r}", where=f"{function}()"
            )


def check_onnx_names(function: str, input_names: Any, output_names: Any, dynamic_axes: Any) -> None:
    """Types of the three ONNX arguments that every exporting function shares (section 3.3)."""
    for argument, names in (("input_names", input_names), ("output_names", output_names)):
        check_type(function, argument, names, list, optional=True)
        if any(not isinstance(name, str) for name in names or ()):
            raise WrongState(
                f"{argument} must hold strings only, it is {names!r}", where=f"{function}()"
            )
    check_type(function, "dynamic_axes", dynamic_axes, dict, optional=True)
    for name, axes in (dynamic_axes or {}).items():
        if not isinstance(name, str) or not isinstance(axes, dict | list):
            raise WrongState(
                f"dynamic_axes must map names to {{axis: label}} or [axis]; {name!r}: {axes!r}",
                where=f"{function}()",
            )
        if any(not isinstance(axis, int) or axis < 0 for axis in axes):
            raise WrongState(
                f"dynamic_axes[{name!r}] must hold axes >= 0, it is {axes!r}", where=f"{function}()"
            )
