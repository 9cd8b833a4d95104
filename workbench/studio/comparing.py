"""Which of a project's trials is best so far, and how two of them differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from workbench.engine.errors import WrongState, WrongValue
from workbench.studio.edits import CellEdit
from workbench.studio.table import SETTINGS

FIGURES = ("metric", "loss", "size", "bops", "n_float", "share", "seconds")
SEARCHED = ("all", "probe", "final")
PLAIN = "quantised"
FLOAT = "float"


def trial_row(trials: pd.DataFrame, trial: int) -> Any:
    """The row of a trial by its number; ``WrongValue`` if there is none."""
    rows = trials[trials["trial"] == trial]
    if not len(rows):
        known = f"{trials['trial'].min()} to {trials['trial'].max()}" if len(trials) else "none yet"
        raise WrongValue(
            f"there is no trial {trial}", where="trials", hint=f"Numbers of this project: {known}."
        )
    return rows.iloc[-1]


def compare(trials: pd.DataFrame, first: int, second: int) -> pd.DataFrame:
    """Two trials side by side: one column each, named by the trial's number.

    The rows ("figure", …) hold metric, loss, size in bytes, bit-operations a sample and the like;
    the rows ("layer", name) say of each layer in which the two differ what was done with it:
    "float", "quantised", or "quantised: " and the settings that are not as generated.
    """
    return compare_rows([trial_row(trials, number) for number in (first, second)], (first, second))


def compare_rows(
    rows: Sequence[Any], titles: Sequence[Any], figures: Sequence[str] = FIGURES
) -> pd.DataFrame:
    """Two rows with figures and layers side by side, as ``compare``; the columns are ``titles``."""
    done = [_done(row) for row in rows]
    # In the order of the trial that names the layer: that is the layers' own order.
    named = dict.fromkeys([*done[0], *done[1]])
    differing = [n for n in named if done[0].get(n, PLAIN) != done[1].get(n, PLAIN)]
    index = [("figure", name) for name in figures] + [("layer", name) for name in differing]
    columns = [
        [row[name] for name in figures] + [own.get(name, PLAIN) for name in differing]
        for row, own in zip(rows, done, strict=True)
    ]
    table = pd.DataFrame(index=pd.MultiIndex.from_tuples(index, names=["what", "name"]))
    for place, (number, values) in enumerate(zip(titles, columns, strict=True)):
        table.insert(place, number, pd.Series(values, index=table.index, dtype=object), True)
    return table


def _done(row: Any) -> dict[str, str]:
    """What was done with each layer that was not simply quantised as generated.

    ``other`` of a row are settings that a layer in float has too: of training and pruning.
    """
    floats, settings = set(row["float_layers"]), row["settings"] or {}
    other = row.get("other") or {}
    found = {}
    for name in dict.fromkeys([*row["float_layers"], *settings, *other]):
        own = {} if name in floats else settings.get(name, {})
        said = [f"{column} {value}" for column, value in {**own, **other.get(name, {})}.items()]
        what = FLOAT if name in floats else PLAIN
        found[name] = f"{what}: {', '.join(said)}" if said else what
    return found


def trial_edits(table: pd.DataFrame, row: Any, generated: Mapping[str, Any]) -> list[CellEdit]:
    """What turns the configuration of the Layers table into a trial's.

    ``generated``: the settings of a generated configuration, by column and row. A trial of an
    earlier version does not know its settings: those stay as they are.
    """
    names = table["name"].tolist()
    eligible = table["eligible"].tolist()
    floats = set(row["float_layers"])
    wanted: dict[str, list[Any]] = {
        "quant_enable": [e and n not in floats for n, e in zip(names, eligible, strict=True)]
    }
    if row["settings"] is not None:
        for column in SETTINGS:
            wanted[column] = [
                row["settings"].get(name, {}).get(column, generated[column][i])
                for i, name in enumerate(names)
            ]
    edits = []
    for column, values in wanted.items():
        now = table[column].tolist()
        rows = tuple(i for i in range(len(names)) if eligible[i] and now[i] != values[i])
        if rows:
            seen, new = tuple(now[i] for i in rows), tuple(values[i] for i in rows)
            edits.append(CellEdit(column, rows, seen, new))
    return edits


def best_floats(trials: pd.DataFrame) -> tuple[str, ...] | None:
    """Float layers of the best trial of the project's last search; None while none has passed."""
    searched = trials[trials["phase"].isin(["search", "final"])]
    if not len(searched):
        return None
    try:
        return tuple(best_trial(trials, int(searched["job"].iloc[-1]))["float_layers"])
    except WrongState:
        return None


def best_trial(trials: pd.DataFrame, job: int, by: str = "n_float") -> Any:
    """The passing trial of a search with the least of ``by``, of equals with the smallest loss.

    Errors: ``WrongState`` while none has passed.
    """
    own = trials[(trials["job"] == job) & trials["kind"].isin(SEARCHED) & trials["satisfied"]]
    if not len(own):
        raise WrongState(
            "no trial of the search has reached the target yet",
            where="search",
            hint="Let it go on, or allow a larger loss.",
        )
    return own.sort_values([by, "loss"], kind="stable").iloc[0]
