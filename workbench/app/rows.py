"""Which layers are shown, in which order, and what the selection presets choose."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from workbench.app.i18n import _
from workbench.app.window import WindowState
from workbench.charts.sensitivity import display_order, worst_first
from workbench.engine.errors import WrongValue

FEW = 1.5
"""So many layers a module has on average, where layers are put together by modules."""


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The filter as a regular expression; ``WrongValue`` says what is wrong with it."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise WrongValue(
            _("this is not a regular expression ({why})").format(why=error),
            where=pattern[:80],
            hint=_("Escape special characters with a backslash."),
        ) from None


def shown_layers(layers: pd.DataFrame, window: WindowState) -> pd.DataFrame:
    """The rows that chart and table both show, in the order in which both show them."""
    if not len(layers):
        return layers
    rows = display_order(layers, window.quantity, window.order)
    table = layers.iloc[rows]
    keep = np.ones(len(table), dtype=bool)
    if window.pattern:
        try:
            pattern = compile_pattern(window.pattern)
        except WrongValue:
            pattern = re.compile(re.escape(window.pattern))
        keep &= np.array([pattern.search(str(name)) is not None for name in table["name"]])
    if window.type:
        keep &= np.asarray(table["type"] == window.type)
    table = table if keep.all() else table[keep]
    if not window.grouped:
        return table
    return table.iloc[by_module(table["name"].tolist(), modules(layers["name"].tolist()))]


def any_eligible(layers: pd.DataFrame) -> bool:
    """Whether there is a layer that can be quantised."""
    return len(layers) > 0 and bool(layers["eligible"].any())


def modules(names: Sequence[str]) -> dict[str, str]:
    """The module that each layer lies in: as deep a path as still holds a few layers on average.

    Empty for a layer at the top.
    """
    paths = {name: name.split(".")[:-1] for name in names}
    deepest = max((len(path) for path in paths.values()), default=0)
    found = dict.fromkeys(names, "")
    for depth in range(1, deepest + 1):
        deeper = {name: ".".join(path[:depth]) for name, path in paths.items()}
        if len(names) < FEW * len(set(deeper.values())):
            break
        found = deeper
    return found


def by_module(names: Sequence[str], module: Mapping[str, str]) -> npt.NDArray[np.int64]:
    """Positions that put the layers of a module together, modules by their first layer."""
    first: dict[str, int] = {}
    places = [first.setdefault(module[name], len(first)) for name in names]
    return np.argsort(np.array(places, dtype=int), kind="stable")


def worst(layers: pd.DataFrame, k: int) -> tuple[str, ...]:
    """The ``k`` measured, eligible layers with the largest error, worst first."""
    rows = worst_first(layers, "error")
    table = layers.iloc[rows]
    table = table[table["eligible"] & table["error"].notna()]
    return tuple(table["name"].iloc[:k])


def below(layers: pd.DataFrame, threshold: float) -> tuple[str, ...]:
    """Every eligible layer worse than the line, quantised or not."""
    return tuple(layers[layers["eligible"] & (layers["cosine"] < threshold)]["name"])


def first_and_last(layers: pd.DataFrame) -> tuple[str, ...]:
    """The first and the last layer that can be quantised, in execution order."""
    names = layers.sort_index()
    names = names[names["eligible"]]["name"]
    return tuple(dict.fromkeys([*names.iloc[:1], *names.iloc[-1:]]))


def small(layers: pd.DataFrame, parameters: int) -> tuple[str, ...]:
    """Eligible layers with fewer parameters."""
    return tuple(layers[layers["eligible"] & (layers["parameters"] < parameters)]["name"])


def depthwise(layers: pd.DataFrame, grouped: Iterable[str]) -> tuple[str, ...]:
    """Eligible layers among ``grouped``, the names of the depthwise convolutions."""
    return tuple(layers[layers["eligible"] & layers["name"].isin(list(grouped))]["name"])
