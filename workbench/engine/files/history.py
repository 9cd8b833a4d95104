"""The files a search leaves for people: ranking, history (chapter 20 section 7), Pareto points."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from workbench.engine.files.atomic import write_text


def dumps(value: Any) -> str:
    """JSON as the chapter's files have it: 4-space indent, ``,`` and ``:`` without spaces."""
    return json.dumps(value, indent=4, separators=(",", ":"), ensure_ascii=False)


def write_ranking(path: str, ranking: Mapping[str, float]) -> None:
    """Pairs ``[layer, value]``, most sensitive first (section 7.1)."""
    write_text(path, dumps([[name, float(value)] for name, value in ranking.items()]))


def write_pareto(path: str, objective: str, unit: str, points: Iterable[Mapping[str, Any]]) -> None:
    """Points of a search for the Pareto front; ours alone. Losses that are infinite are null."""
    finite = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in point.items()}
        for point in points
    ]
    write_text(path, dumps({"objective": objective, "unit": unit, "points": finite}))


def write_history(path: str, entries: Iterable[tuple[Mapping[str, bool], bool, float]]) -> None:
    """The compatible concatenation of objects (section 7.2), and a ``.jsonl`` beside it."""
    objects = [
        {"roll_back_config": dict(config), "metric_eval": [satisfied, loss]}
        for config, satisfied, loss in entries
    ]
    write_text(path, "".join(dumps(o) for o in objects))
    lines = (json.dumps(o, separators=(",", ":"), ensure_ascii=False) + "\n" for o in objects)
    write_text(path + "l" if path.endswith(".json") else path + ".jsonl", "".join(lines))


def read_history(text: str) -> list[dict[str, Any]]:
    """Objects of a history file, which stand back to back without a separator."""
    decoder = json.JSONDecoder()
    objects, position = [], 0
    while position < len(text):
        value, end = decoder.raw_decode(text, position)
        objects.append(value)
        position = end
        while position < len(text) and text[position].isspace():
            position += 1
    return objects
