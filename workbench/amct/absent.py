"""What scripts may import and this version does not have, and why."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import NoReturn

ABSENT: dict[str, str] = {
    "workbench.amct.prune": "is left out, as all of structured pruning on live modules is",
    "workbench.amct.pruning": "is left out, as all of structured pruning on live modules is",
    "workbench.amct.common.auto_calibration.AccuracyBasedAutoCalibrationBase": (
        "is the reference's controller; accuracy_based_auto_calibration takes strategies, "
        "sensitivities and evaluators of yours"
    ),
}
"""Full path of a module or name -> what is to be said of it."""


def why_absent(path: str) -> str:
    return f"{path} {ABSENT[path]}; it is not in this version"


def absent_names(module: str) -> Callable[[str], NoReturn]:
    """A ``__getattr__`` for ``module`` that says why a known name is not there."""

    def get(name: str) -> NoReturn:
        path = f"{module}.{name}"
        known = path in ABSENT
        raise AttributeError(
            why_absent(path) if known else f"module {module!r} has no attribute {name!r}"
        )

    return get


class _AbsentFinder(MetaPathFinder):
    """``from package import name`` drops an ``AttributeError``'s text; this one's is kept."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        if name in ABSENT:
            raise ImportError(why_absent(name), name=name)


if not any(type(finder).__name__ == _AbsentFinder.__name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, _AbsentFinder())
