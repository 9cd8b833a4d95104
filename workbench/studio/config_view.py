"""``session.config["layer1.0.conv1"].quant_enable = False``: the configuration as attributes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import pandas as pd

from workbench.engine.errors import WrongValue
from workbench.studio.columns import EDITABLE


class Editable(Protocol):
    """Of a session, what its configuration is read from and edited by."""

    layers: pd.DataFrame

    @property
    def names(self) -> frozenset[str]: ...
    def row(self, name: str) -> int: ...
    def set_option(self, names: Iterable[str], column: str, value: Any) -> None: ...


class LayerView:
    """One layer's settings; setting an attribute is an edit that can be undone."""

    __slots__ = ("_name", "_session")

    def __init__(self, session: Editable, name: str) -> None:
        object.__setattr__(self, "_session", session)
        object.__setattr__(self, "_name", name)

    def __getattr__(self, column: str) -> Any:
        if column not in EDITABLE:
            raise AttributeError(f"a layer has no {column!r}; it has {', '.join(EDITABLE)}")
        session: Editable = self._session
        value = session.layers[column].iloc[session.row(self._name)]
        return value.item() if hasattr(value, "item") else value

    def __setattr__(self, column: str, value: Any) -> None:
        self._session.set_option([self._name], column, value)

    def __dir__(self) -> list[str]:
        return list(EDITABLE)

    def __repr__(self) -> str:
        settings = ", ".join(f"{column}={getattr(self, column)!r}" for column in EDITABLE)
        return f"<{self._name}: {settings}>"


class ConfigView:
    """All layers by name, in execution order."""

    def __init__(self, session: Editable) -> None:
        self._session = session

    def __getitem__(self, name: str) -> LayerView:
        try:
            self._session.row(name)
        except WrongValue as error:
            raise KeyError(str(error)) from None
        return LayerView(self._session, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._session.layers["name"])

    def __len__(self) -> int:
        return len(self._session.layers)

    def __contains__(self, name: object) -> bool:
        return name in self._session.names

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    def __repr__(self) -> str:
        enabled = int(self._session.layers["quant_enable"].sum())
        return f"<configuration of {len(self)} layers, {enabled} quantised>"
