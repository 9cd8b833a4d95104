"""What a figure draws, as a table of exact figures: for a spreadsheet, or to read instead of it."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def figure_table(figure: go.Figure) -> pd.DataFrame:
    """One row a point, cell or area, in the order drawn.

    ``series``: the trace's name; ``name``: what stands there, such as the layer. The other columns
    are called as the axes are; ``x`` and ``y`` where the axes have no title, or several.
    """
    content = figure.to_plotly_json()
    layout = figure.layout
    rows: list[dict[str, Any]] = []
    for trace in content["data"]:
        rows += _ROWS.get(trace["type"], _points)(trace)
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    titles = {
        "x": _title(content["data"], layout, "x"),
        "y": _title(content["data"], layout, "y"),
        "value": _scale_title(content["data"]),
    }
    renamed = {column: title for column, title in titles.items() if title and column in table}
    if len(set(renamed.values())) == len(renamed):
        table = table.rename(columns=renamed)
    return table.dropna(axis="columns", how="all")


def figure_csv(figure: go.Figure) -> str:
    """``figure_table`` as CSV; text that a spreadsheet would run as a formula is made harmless."""
    table = figure_table(figure)
    stream = io.StringIO()
    table.map(_harmless).rename(columns=_harmless).to_csv(stream, index=False, lineterminator="\n")
    return stream.getvalue()


def exact_values(shown: Any, values: Any) -> dict[str, dict[str, float | None]] | None:
    """A trace's ``meta`` where it shows ``shown`` for ``values``: stubs that can be clicked.

    ``figure_table`` gives the values, nothing for those that are not known. None: all are as shown.
    """
    drawn, real = (np.asarray(x, dtype=np.float64) for x in (shown, values))
    differ = np.flatnonzero(~np.isclose(drawn, real, rtol=1e-9, atol=0.0))
    if not differ.size:
        return None
    known = {str(i): float(real[i]) if math.isfinite(real[i]) else None for i in differ.tolist()}
    return {"exact": known}


def _points(trace: Mapping[str, Any]) -> list[dict[str, Any]]:
    x, y = listed(trace.get("x")), listed(trace.get("y"))
    count = max(len(x), len(y))
    x = x or list(range(count))
    flat = trace.get("orientation") == "h"
    lengths = x if flat else y
    if trace.get("base") is not None:
        base = trace["base"]
        starts = [base] * count if isinstance(base, int | float) else listed(base)
        lengths = [_sum(a, b) for a, b in zip(starts, lengths, strict=True)]
    meta = trace.get("meta")
    exact = meta.get("exact", {}) if isinstance(meta, Mapping) else {}
    lengths = [exact.get(str(i), value) for i, value in enumerate(lengths)]
    x, y = (lengths, y) if flat else (x, lengths)
    names = _names(trace.get("customdata"), count)
    return [
        {"series": _series(trace), "name": name, "x": a, "y": b}
        for name, a, b in zip(names, x, y, strict=True)
        if a is not None or b is not None
    ]


def _cells(trace: Mapping[str, Any]) -> list[dict[str, Any]]:
    cells = [listed(row) for row in listed(trace.get("z"))]
    width = max((len(row) for row in cells), default=0)
    x = listed(trace.get("x")) or list(range(width))
    y = listed(trace.get("y")) or list(range(len(cells)))
    names = [_names(row, width) for row in listed(trace.get("customdata"))]
    return [
        {
            "series": _series(trace),
            "name": names[i][j] if names else None,
            "x": x[j],
            "y": y[i],
            "value": value,
        }
        for i, row in enumerate(cells)
        for j, value in enumerate(row)
        if _known(value)
    ]


def _areas(trace: Mapping[str, Any]) -> list[dict[str, Any]]:
    columns = (trace.get("ids"), trace.get("parents"), trace.get("values"))
    return [
        {"series": _series(trace), "name": name, "inside": parent, "value": value}
        for name, parent, value in zip(*map(listed, columns), strict=True)
    ]


_ROWS = {"heatmap": _cells, "treemap": _areas, "icicle": _areas}


def _series(trace: Mapping[str, Any]) -> str | None:
    return trace.get("name") or None


def listed(values: Any) -> list[Any]:
    """The values of an attribute as a list, however plotly holds them."""
    if values is None:
        return []
    if isinstance(values, Mapping):  # an array as plotly packs it
        array = np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"])
        shape = values.get("shape")
        values = array if shape is None else array.reshape([int(n) for n in shape.split(",")])
    return list(values.tolist() if hasattr(values, "tolist") else values)


def _names(data: Any, count: int) -> list[Any]:
    """The first text (or number) of each point's data."""
    values = listed(data)
    firsts = [v[0] if isinstance(v, list | tuple) and v else v for v in values]
    if not firsts or not all(isinstance(v, str | int) for v in firsts):
        return [None] * count
    return (firsts + [None] * count)[:count]


def _sum(a: Any, b: Any) -> Any:
    return None if a is None or b is None else a + b


def _known(value: Any) -> bool:
    return value is not None and value == value


def _title(traces: Sequence[Mapping[str, Any]], layout: Any, axis: str) -> str:
    """The title of the axis all traces share; empty if there is none, or more than one axis."""
    used = {trace.get(f"{axis}axis") or axis for trace in traces}
    if len(used) != 1:
        return ""
    number = used.pop()[1:]
    return str(layout[f"{axis}axis{number}"].title.text or "")


def _scale_title(traces: Sequence[Mapping[str, Any]]) -> str:
    for trace in traces:
        title = (trace.get("colorbar") or {}).get("title")
        text = title.get("text") if isinstance(title, Mapping) else title
        if text:
            return str(text)
    return ""


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
