"""What belongs to one browser window alone: selection, filter, order, threshold, theme."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import param

from workbench.charts import QUANTITIES

(
    MODEL_TAB, LAYERS_TAB, INSPECT_TAB, SEARCH_TAB, TRAIN_TAB, FORMATS_TAB, EXPORT_TAB,
    HISTORY_TAB, CODE_TAB,
) = range(9)  # fmt: skip
TABS = (
    "model", "layers", "inspect", "search", "train", "formats", "export", "history", "code"
)  # fmt: skip
"""What an address calls the tabs: ``?project=…&tab=train``."""

Settings = TypeVar("Settings", bound=param.Parameterized)
PASSING = ("name", "notice")
"""Params that do not outlive the page."""


class WindowState(param.Parameterized):
    """Private state of a window; everything shared is in the session.

    The settings of its forms belong to it, each kind once (``settings``), and single controls
    (``keep``).
    """

    selected = param.Parameter(default=(), doc="Names of the selected layers.")
    unfolded = param.Parameter(default=(), doc="Names of the settings that are unfolded.")
    trials = param.Parameter(default=(), doc="Numbers of the chosen trials.")
    rows = param.Parameter(default=(), doc="Keys of the chosen rows of the history.")
    inspected = param.String(default="", doc="Name of the layer in the Inspect tab.")
    quantity: Any = param.Selector(default="error", objects=list(QUANTITIES))
    order: Any = param.Selector(default="execution", objects=["execution", "sorted"])
    threshold = param.Number(default=0.99, bounds=(-1.0, 1.0), doc="Cosine similarity.")
    pattern = param.String(default="", doc="Regular expression a layer's name must contain.")
    type = param.String(default="", doc="Layer type to show; empty: all.")
    grouped = param.Boolean(default=False, doc="Layers of a module together, under its name.")
    search_part: Any = param.Selector(
        default="quantise", objects=["quantise", "channels", "decompose"]
    )
    dark = param.Boolean(default=False)
    tab = param.Integer(default=LAYERS_TAB, bounds=(MODEL_TAB, CODE_TAB))
    notice = param.String(default="", doc="A sentence about what just went wrong.")

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self._settings: dict[str, param.Parameterized] = {}
        self._controls: dict[str, Any] = {}
        self._left: Mapping[str, Any] = {}
        self._followers: list[Callable[[], None]] = []
        self.param.watch(self._tell, [name for name in self.param if name not in PASSING])

    @classmethod
    def restored(cls, values: Mapping[str, Any]) -> WindowState:
        """A window with the ``values_kept`` of another one; what does not fit is left out."""
        state = cls()
        left = values.get("left")
        state._left = left if isinstance(left, dict) else {}
        _give(state, values)
        return state

    def settings(self, kind: builtins.type[Settings], **first: Any) -> Settings:
        """The window's settings of a kind, as they were left before the page loaded again.

        ``first``: what a window begins with instead of the defaults.
        """
        found = self._settings.get(kind.__name__)
        if not isinstance(found, kind):
            found = kind()
            found.param.update(**first)
            _give(found, self._left.get(kind.__name__))
            found.param.watch(self._tell, [name for name in found.param if name != "name"])
            self._settings[kind.__name__] = found
        return found

    def keep(self, name: str, control: Any) -> None:
        """Give a control the value that it had, and let its ``value`` outlive the page too.

        A value that its ``options`` no longer have is left out.
        """
        left = self._left.get(name, control.value)
        options = getattr(control, "options", None)
        known = list(options.values()) if isinstance(options, dict) else options
        if known is None or all(x in known for x in (left if isinstance(left, list) else [left])):
            with suppress(ValueError):
                control.value = left
        control.param.watch(self._tell, "value")
        self._controls[name] = control

    def follow(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when anything changes that ``values_kept`` has."""
        self._followers.append(callback)

    def values_kept(self) -> dict[str, Any]:
        """All that outlives the page, as JSON can hold it."""
        left = dict(self._left)
        left.update((name, _values(found)) for name, found in self._settings.items())
        left.update((name, control.value) for name, control in self._controls.items())
        return {**_values(self), "left": left}

    def _tell(self, *_events: Any) -> None:
        for callback in self._followers:
            callback()


def _values(found: param.Parameterized) -> dict[str, Any]:
    return {name: getattr(found, name) for name in found.param if name not in PASSING}


def _give(target: param.Parameterized, values: Any) -> None:
    """Set params as they were, without what follows from one when a person sets it."""
    with param.parameterized.discard_events(target):
        for name, value in (values if isinstance(values, Mapping) else {}).items():
            if name in target.param and name not in PASSING:
                with suppress(ValueError):
                    before = getattr(target, name)
                    setattr(target, name, tuple(value) if isinstance(before, tuple) else value)
