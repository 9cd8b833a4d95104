"""``session.variants``: named variants of the configuration, kept, taken up again and compared."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import pandas as pd

from workbench.engine.errors import WrongValue
from workbench.studio import ptq, variants
from workbench.studio.columns import EDITABLE
from workbench.studio.comparing import compare_rows
from workbench.studio.edits import CellEdit
from workbench.studio.figures import Judged
from workbench.studio.following import Follower
from workbench.studio.project import Project
from workbench.studio.store import Cells
from workbench.studio.table import SETTINGS
from workbench.studio.variants import KeptVariant

CURRENT = "current"
"""Title of the configuration as it is in a comparison."""

WAY = "way"
"""How a layer is quantised as a module, among the settings of a comparison."""

FIGURES = ("metric", "predicted", "size", "bops", "n_float")
OTHER = ("retrain_enable", "prune_enable", "prune_ratio")
"""Columns that say nothing about the quantisation."""


class Varied(Protocol):
    """Of a session, what its variants need."""

    project: Project
    layers: pd.DataFrame
    kept_variants: tuple[KeptVariant, ...]
    ways: dict[str, str]
    _follower: Follower
    _lock: threading.RLock

    @property
    def without_graph(self) -> bool: ...
    def poll(self) -> bool: ...
    def _commit(
        self,
        cells: Sequence[CellEdit],
        label: str,
        ways: Mapping[str, str | None] | None = None,
    ) -> None: ...


class VariantsView:
    """The project's variants by name, oldest first.

    A variant holds what the Layers table lets one edit, for every layer, and what was chosen in
    Formats. All windows of a project
    share its variants; ``session.kept_variants`` can be watched. Errors of every call:
    ``WrongValue`` for an unknown name or one that cannot be, ``NotWritable``.
    """

    def __init__(self, session: Varied) -> None:
        self._session = session

    def save(self, name: str, *, overwrite: bool = False) -> None:
        """Keep the configuration as it is under ``name``; a name that is taken is refused.

        ``overwrite``: it replaces the variant of that name.
        """
        name, session = variants.checked_name(name), self._session
        session.poll()
        with session._lock:
            if not session.without_graph:
                session._follower.figures.config()  # says it where there are no layers yet
            table, ways = session.layers, dict(session.ways)
        known = table["name"].tolist() if len(table) else []
        variants.save_variant(
            session.project.store,
            name,
            known,
            ptq.columns_of(table) if known else {column: [] for column in EDITABLE},
            ways=ways,
            overwrite=overwrite,
        )
        session.poll()

    def use(self, name: str) -> None:
        """Make a variant the configuration, as one edit that can be undone.

        Refused in words for a variant that was made for other layers.
        """
        session = self._session
        session.poll()
        with session._lock:
            cells = [
                CellEdit(column, rows, tuple(session.layers[column].iloc[list(rows)].tolist()), new)
                for column, (rows, new) in self._cells(name).items()
            ]
            chosen = self._ways(name)
            moved = {
                layer: chosen.get(layer)
                for layer in {**session.ways, **chosen}
                if chosen.get(layer) != session.ways.get(layer)
            }
            if cells or moved:
                session._commit(cells, f"variant {name}", moved)

    def rename(self, name: str, new: str) -> None:
        """Give a variant another name, which must be free."""
        variants.rename_variant(self._session.project.store, name, variants.checked_name(new))
        self._session.poll()

    def delete(self, name: str) -> None:
        """Delete a variant for good; the configuration stays as it is."""
        variants.delete_variant(self._session.project.store, name)
        self._session.poll()

    def compare(self, first: str, second: str | None = None) -> pd.DataFrame:
        """Two variants side by side, or with None a variant and the configuration as it is.

        Rows as ``Session.compare`` has them, and ("figure", "predicted"): the metric as it is
        predicted, beside the one that was measured, which is NaN where none was. The columns are
        the names, and "current".
        """
        session = self._session
        session.poll()
        with session._lock:
            names = [first, second]
            rows = [
                self._row({} if name is None else self._cells(name), self._ways(name))
                for name in names
            ]
            place = session._follower.row_of
        table = compare_rows(rows, [CURRENT if name is None else name for name in names], FIGURES)
        layers = sorted(
            (key for key in table.index if key[0] == "layer"),
            key=lambda key: place.get(key[1], len(place)),  # modules outside the graph come last
        )
        return table.loc[[key for key in table.index if key[0] == "figure"] + layers]

    @property
    def table(self) -> pd.DataFrame:
        """One row a variant, oldest first, with its figures; ``problem`` says why it has none."""
        session, found = self._session, []
        for kept in session.kept_variants:
            row: dict[str, Any] = {"name": kept.name, "time": kept.time, "problem": ""}
            with session._lock:
                try:
                    facts = self._row(self._cells(kept.name), {})
                    row |= {name: facts[name] for name in FIGURES}
                except WrongValue as error:
                    row |= dict.fromkeys(FIGURES, float("nan")) | {"problem": error.message}
            found.append(row)
        return pd.DataFrame(found, columns=["name", "time", *FIGURES, "problem"])

    def changes(self, name: str) -> pd.DataFrame:
        """The table of layers as it would be with a variant."""
        with self._session._lock:
            return self._judged(self._cells(name))[0]

    def _variant(self, name: str) -> variants.Variant:
        project = self._session.project
        layers = self._session._follower.infos
        return variants.read_variant(project.store, name, layers, project.source)

    def _cells(self, name: str) -> Cells:
        """What of the configuration a variant would change."""
        session = self._session
        variant = self._variant(name)
        cells: Cells = {}
        for column in EDITABLE:
            now, wanted = session.layers[column].tolist(), variant.columns[column]
            rows = tuple(i for i, (a, b) in enumerate(zip(now, wanted, strict=True)) if a != b)
            if rows:
                cells[column] = (rows, tuple(wanted[row] for row in rows))
        return cells

    def _ways(self, name: str | None) -> Mapping[str, str]:
        """The chosen ways to quantise modules of a variant, or with None as they are now."""
        session = self._session
        if name is None:
            return session.ways
        variant = self._variant(name)
        return session.ways if variant.ways is None else variant.ways

    def _judged(self, cells: Cells) -> tuple[pd.DataFrame, Judged]:
        return self._session._follower.judge(self._session.layers, cells)

    def _row(self, cells: Cells, ways: Mapping[str, str]) -> Mapping[str, Any]:
        """A configuration as ``compare_rows`` takes it."""
        if self._session.without_graph:
            nothing: dict[str, Any] = dict.fromkeys(FIGURES, float("nan"))
            return nothing | {"float_layers": [], "settings": {}, "other": _with_ways({}, ways)}
        table, judged = self._judged(cells)
        infos, source = self._session._follower.infos, self._session.project.source
        columns, usual = ptq.columns_of(table), variants.usual_columns(infos, source)
        changed: dict[str, dict[str, dict[str, Any]]] = {"settings": {}, "other": {}}
        for kind, names in (("settings", SETTINGS), ("other", OTHER)):
            for row, layer in enumerate(infos):
                own = {c: columns[c][row] for c in names if columns[c][row] != usual[c][row]}
                if own:
                    changed[kind][layer.name] = own
        changed["other"] = _with_ways(changed["other"], ways)
        floats = [x.name for x, on in zip(infos, columns["quant_enable"], strict=True) if not on]
        left = table["eligible"].to_numpy() & ~table["quant_enable"].to_numpy()
        return {
            "metric": judged.metric,
            "predicted": judged.predicted,
            "size": judged.size,
            "bops": judged.bops,
            "n_float": int(left.sum()),
            "float_layers": floats,
            **changed,
        }

    def __iter__(self) -> Iterator[str]:
        return iter([kept.name for kept in self._session.kept_variants])

    def __len__(self) -> int:
        return len(self._session.kept_variants)

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __repr__(self) -> str:
        return f"<variants: {', '.join(self) or 'none yet'}>"


def _with_ways(
    other: Mapping[str, Mapping[str, Any]], ways: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """``other`` settings of layers, and the way that was chosen for their modules."""
    chosen = {name: {WAY: way} for name, way in ways.items()}
    return {name: {**other.get(name, {}), **chosen.get(name, {})} for name in {**other, **chosen}}
