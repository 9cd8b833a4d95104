"""The information file of tensor decomposition: which convolutions became which pairs.

Source: specification chapter 60 section 5. What that format has no place for (rank, error, padding)
goes to the sidecar.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from workbench.engine.errors import MissingFile, WrongValue
from workbench.engine.files.atomic import write_text
from workbench.engine.files.problems import Problem, raise_problems
from workbench.engine.files.reading import read_text
from workbench.engine.files.sidecar import Sidecar, read_sidecar, write_sidecar
from workbench.engine.graph.kernel_split import MODES, KernelSplit

_LAYERS = "layers"


class DecomposeInfoSyntaxError(WrongValue, json.JSONDecodeError):
    """A file that is not JSON; also Python's own ``JSONDecodeError``."""

    def __init__(self, cause: json.JSONDecodeError, *, where: str) -> None:
        self.message = f"not JSON: {cause}"
        self.where = where
        self.hint = ""
        json.JSONDecodeError.__init__(self, f"{where}: not JSON: {cause.msg}", cause.doc, cause.pos)


@dataclass(frozen=True)
class DecomposedConv:
    """One convolution as it was, and the rank of the pair that replaces it.

    ``padding``, ``has_bias`` and ``relative_error`` are None in what another tool has written.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    rank: int
    padding: str | tuple[int, int] | None = None
    has_bias: bool | None = None
    relative_error: float | None = None

    @property
    def split(self) -> KernelSplit:
        return KernelSplit((self.out_channels, self.in_channels, *self.kernel_size))


def write_decompose_info(
    path: str | os.PathLike[str], layers: Sequence[DecomposedConv], *, compat: bool = False
) -> None:
    """Write the file and its sidecar atomically; an existing file is named in a warning."""
    text = json.dumps([_to_json(layer) for layer in layers], indent="\t") + "\n"
    write_text(path, text, warn_if_exists=True)
    extras = {
        layer.name: {
            "has_bias": layer.has_bias,
            "padding": layer.padding,
            "rank": layer.rank,
            "relative_error": layer.relative_error,
        }
        for layer in layers
    }
    write_sidecar(path, Sidecar(compat=compat, options={_LAYERS: extras}))


def read_decompose_info(path: str | os.PathLike[str]) -> tuple[DecomposedConv, ...]:
    """The file's layers, and what the sidecar knows of them.

    Errors: ``FileNotFoundError`` (missing, or a folder); ``JSONDecodeError``; one ``ConfigError``
    (``ValueError``) or ``ConfigTypeError`` with every missing key, wrong type, unknown mode,
    impossible shape and repeated name.
    """
    if Path(path).is_dir():
        raise MissingFile("a folder, not an information file", where=str(path))
    text = read_text(path, what="decomposition information file")
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise DecomposeInfoSyntaxError(error, where=str(path)) from None
    if not isinstance(data, list):
        raise_problems(
            [Problem("", "the top level", type(data).__name__, "a list", True)], source=str(path)
        )
    problems: list[Problem] = []
    layers = [
        layer
        for number, item in enumerate(data)
        if (layer := _from_json(item, f"[{number}]", problems)) is not None
    ]
    for name, count in Counter(layer.name for layer in layers).items():
        if count > 1:
            problems.append(Problem(name, "name", f"given {count} times", "once"))
    raise_problems(problems, source=str(path))
    return _with_extras(layers, path)


def _to_json(layer: DecomposedConv) -> dict[str, Any]:
    return {
        "ori_layer_info": {
            "name": layer.name,
            "in_channels": layer.in_channels,
            "out_channels": layer.out_channels,
            "kernel_size": layer.kernel_size,
            "stride": layer.stride,
            "dilation": layer.dilation,
            "groups": layer.groups,
        },
        "mode": layer.split.mode,
        "decom_nodes": {
            "first": {"weight_shape": layer.split.first_shape(layer.rank)},
            "last": {"weight_shape": layer.split.last_shape(layer.rank)},
        },
    }


def _from_json(item: Any, place: str, problems: list[Problem]) -> DecomposedConv | None:
    before = len(problems)
    layer = _object(item, place, problems)
    original = _object(layer.get("ori_layer_info"), f"{place}.ori_layer_info", problems)
    nodes = _object(layer.get("decom_nodes"), f"{place}.decom_nodes", problems)
    first = _object(nodes.get("first"), f"{place}.decom_nodes.first", problems)
    last = _object(nodes.get("last"), f"{place}.decom_nodes.last", problems)
    if len(problems) > before:
        return None
    name, mode = original.get("name"), layer.get("mode")
    if not isinstance(name, str):
        problems.append(Problem("", f"{place}.ori_layer_info.name", repr(name), "a string", True))
        return None
    numbers = {
        key: _integers(original, key, count, name, problems)
        for key, count in (
            ("in_channels", 0),
            ("out_channels", 0),
            ("groups", 0),
            ("kernel_size", 2),
            ("stride", 2),
            ("dilation", 2),
        )
    }
    shapes = [_integers(node, "weight_shape", 4, name, problems) for node in (first, last)]
    if mode not in MODES:
        problems.append(Problem(name, "mode", repr(mode), ", ".join(MODES)))
    if len(problems) > before:
        return None
    found = DecomposedConv(name=name, rank=shapes[0][0], **numbers)
    problems.extend(_shape_problems(found, str(mode), *shapes))
    return found


def _shape_problems(
    layer: DecomposedConv, mode: str, first: tuple[int, ...], last: tuple[int, ...]
) -> Iterator[Problem]:
    split = layer.split
    if mode != split.mode:
        yield Problem(layer.name, "mode", repr(mode), f"{split.mode}, for {_sizes(layer)}")
        return
    for key, found, wanted in (
        ("first.weight_shape", first, split.first_shape(layer.rank)),
        ("last.weight_shape", last, split.last_shape(layer.rank)),
    ):
        if found != wanted:
            allowed = f"{list(wanted)}, for {_sizes(layer)} and {layer.rank} channels in between"
            yield Problem(layer.name, key, str(list(found)), allowed)


def _sizes(layer: DecomposedConv) -> str:
    return (
        f"in_channels {layer.in_channels}, out_channels {layer.out_channels}, "
        f"kernel_size {list(layer.kernel_size)}"
    )


def _object(value: Any, place: str, problems: list[Problem]) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return value
    found = "missing" if value is None else type(value).__name__
    # One message for the outermost thing that is wrong: what lies in it cannot be there.
    if not any(place.startswith(f"{problem.key}.") for problem in problems):
        problems.append(Problem("", place, found, "an object", value is not None))
    return {}


def _integers(
    values: Mapping[str, Any], key: str, count: int, layer: str, problems: list[Problem]
) -> Any:
    """A positive integer (``count`` 0) or a tuple of ``count`` of them."""
    value: Any = values.get(key)
    items: list[Any] = value if isinstance(value, list) else [value]
    right_count = len(items) == count if count else not isinstance(value, list)
    if right_count and all(_is_whole(item) and item >= 1 for item in items):
        return tuple(items) if count else value
    allowed = f"a list of {count} integers >= 1" if count else "an integer >= 1"
    found = "missing" if value is None else repr(value)
    wrong_type = value is not None and not all(map(_is_whole, items))
    problems.append(Problem(layer, key, found, allowed, wrong_type))
    return None


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _with_extras(
    layers: Sequence[DecomposedConv], path: str | os.PathLike[str]
) -> tuple[DecomposedConv, ...]:
    extras = read_sidecar(path).options.get(_LAYERS, {})
    if not isinstance(extras, dict):
        raise WrongValue(f"options.{_LAYERS} must be an object", where=f"the sidecar of {path}")
    return tuple(_extended(layer, extras.get(layer.name), path) for layer in layers)


def _extended(layer: DecomposedConv, extra: Any, path: str | os.PathLike[str]) -> DecomposedConv:
    if extra is None:
        return layer
    rank = extra.get("rank") if isinstance(extra, dict) else None
    if rank != layer.rank:
        raise WrongValue(
            f"rank {rank} of layer {layer.name} is not the file's, which is {layer.rank}.",
            where=f"the sidecar of {path}",
            hint="The two were not written together: delete the sidecar.",
        )
    padding = extra.get("padding")
    return replace(
        layer,
        padding=tuple(padding) if isinstance(padding, list) else padding,
        has_bias=extra.get("has_bias"),
        relative_error=extra.get("relative_error"),
    )
