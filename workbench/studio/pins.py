"""Layers that the user holds quantised or float, whatever a search proposes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from workbench.studio.store import Store, put_meta

KEY = "pins"


def read_pins(store: Store) -> dict[str, bool]:
    """Layer to True (stays quantised) or False (stays float)."""
    return as_pins(store.get(KEY))


def as_pins(value: Any) -> dict[str, bool]:
    """The stored value, checked: a project may come from anywhere."""
    if not isinstance(value, Mapping):
        return {}
    return {str(name): bool(on) for name, on in value.items()}


def write_pins(store: Store, names: Iterable[str], value: bool | None) -> None:
    """Hold these layers, or with None let them go; what other windows pinned stays."""
    with store.write() as connection:
        row = connection.execute("SELECT value FROM meta WHERE key = ?", (KEY,)).fetchone()
        pins = as_pins(json.loads(row[0]) if row else None)
        for name in names:
            if value is None:
                pins.pop(name, None)
            else:
                pins[name] = value
        put_meta(connection, {KEY: pins})
