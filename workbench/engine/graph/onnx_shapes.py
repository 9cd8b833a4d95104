"""ONNX operators that arrange values: shapes as lists of numbers, tensors by views and copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from workbench.engine.graph.onnx_builder import OnnxBuilder, Step, Value, handles

_aten = torch.ops.aten


@handles("Constant")
def constant(build: OnnxBuilder, step: Step) -> Value:
    for name, dtype in (
        ("value", None), ("value_float", np.float32), ("value_floats", np.float32),
        ("value_int", np.int64), ("value_ints", np.int64),
    ):  # fmt: skip
        if step.attribute(name) is not None:
            return np.asarray(step.attribute(name), dtype)
    raise build.refuse(step, "a constant of this kind is not read")


@handles("Shape")
def shape(build: OnnxBuilder, step: Step) -> Value:
    source = step[0]
    if isinstance(source, np.ndarray):
        sizes: list[Any] = list(source.shape)
    else:
        rank = build.rank(step.node.input[0])
        if rank is None:
            raise build.refuse(step, "the rank of its input is not known")
        sizes = [_size(build, source, step.node.input[0], axis) for axis in range(rank)]
    return sizes[step.attribute("start", 0) : step.attribute("end", len(sizes))]


def _size(build: OnnxBuilder, source: fx.Node, name: str, axis: int) -> Any:
    known = build.source.shapes.get(name, ())
    if axis < len(known) and known[axis] > 0 and axis > 0:
        return known[axis]
    return build.call(_aten.sym_size.int, source, axis)


@handles("ConstantOfShape")
def filled(build: OnnxBuilder, step: Step) -> Value:
    value = np.reshape(step.attribute("value", np.zeros(1, np.float32)), -1)[0]
    sizes = build.fixed(step, 0, "its shape")
    if all(isinstance(n, int) for n in sizes):
        return np.full(sizes, value)
    dtype = torch.from_numpy(np.zeros(0, value.dtype)).dtype
    return build.call(torch.full, sizes, value.item(), dtype=dtype)


@handles("Range")
def arange(build: OnnxBuilder, step: Step) -> Value:
    parts = [build.ints(step[i]) for i in range(3)]
    if any(part is None or len(part) != 1 for part in parts):
        raise build.refuse(step, "its bounds are computed from data")
    start, end, by = (part[0] for part in parts if part is not None)
    if all(isinstance(n, int) for n in (start, end, by)):
        return np.arange(start, end, by)
    return build.call(torch.arange, start, end, by)


@handles("Reshape")
def reshape(build: OnnxBuilder, step: Step) -> Value:
    wanted = build.fixed(step, 1, "its shape")
    if (
        isinstance(step[0], list | np.ndarray)
        and build.ints(step[0]) is not None
        and len(wanted) < 2
    ):
        return build.ints(step[0])
    x = build.tensor(step[0])
    if not step.attribute("allowzero", 0):
        name = step.node.input[0]
        wanted = [
            _size(build, x, name, axis) if isinstance(n, int) and n == 0 else n
            for axis, n in enumerate(wanted)
        ]
    return build.call(torch.reshape, x, wanted)


@handles("Flatten")
def flatten(build: OnnxBuilder, step: Step) -> Value:
    axis = step.attribute("axis", 1)
    x = build.tensor(step[0])
    if axis == 1:
        return build.call(torch.flatten, x, 1)
    return build.call(onnx_flatten, x, axis)


def onnx_flatten(x: Tensor, axis: int) -> Tensor:
    """Always two dimensions: what is before the axis, and the rest."""
    rows = 1
    for n in x.shape[:axis] if axis >= 0 else x.shape[: x.dim() + axis]:
        rows *= n
    return x.reshape(rows, -1)


@handles("Transpose")
def transpose(build: OnnxBuilder, step: Step) -> Value:
    order = step.attribute("perm")
    if isinstance(step[0], np.ndarray):
        return np.ascontiguousarray(np.transpose(step[0], order))
    x = build.tensor(step[0])
    if order is None:
        rank = build.rank(step.node.input[0])
        if rank is None:
            raise build.refuse(step, "the rank of its input is not known")
        order = list(reversed(range(rank)))
    return build.call(torch.permute, x, list(order))


@handles("Concat")
def concat(build: OnnxBuilder, step: Step) -> Value:
    lists = [build.ints(arg) for arg in step.args]
    if any(isinstance(arg, list) for arg in step.args) and all(part is not None for part in lists):
        return [n for part in lists if part is not None for n in part]
    return build.call(
        torch.cat, [build.tensor(arg) for arg in step.args], step.attribute("axis", 0)
    )


@handles("Split")
def split(build: OnnxBuilder, step: Step) -> Value:
    axis = step.attribute("axis", 0)
    sizes = step.attribute("split")
    if sizes is None and step[1] is not None:
        sizes = build.fixed(step, 1, "its sizes")
    x = build.tensor(step[0])
    count = len(step.node.output)
    if sizes is None:
        pieces = build.call(torch.chunk, x, step.attribute("num_outputs", count), axis)
    else:
        pieces = build.call(torch.split, x, list(sizes), axis)
    return tuple(build.call(_item, pieces, i) for i in range(count))


def _item(values: Any, index: int) -> Any:
    return values[index]


@handles("Slice")
def cut(build: OnnxBuilder, step: Step) -> Value:
    starts = build.fixed(step, 1, "its start")
    ends = build.fixed(step, 2, "its end")
    axes = build.fixed(step, 3, "its axes") if step[3] is not None else list(range(len(starts)))
    steps = build.fixed(step, 4, "its step") if step[4] is not None else [1] * len(starts)
    if isinstance(step[0], list):
        return step[0][starts[0] : ends[0] : steps[0]]
    if any(not isinstance(by, int) or by < 1 for by in steps):
        raise build.refuse(step, f"steps {steps} are not read, only positive ones")
    x = build.tensor(step[0])
    for axis, start, end, by in zip(axes, starts, ends, steps, strict=True):
        x = build.call(_aten.slice.Tensor, x, axis, start, end, by)
    return x


@handles("Gather")
def gather(build: OnnxBuilder, step: Step) -> Value:
    axis = step.attribute("axis", 0)
    index = step[1]
    fixed = build.ints(index)
    if isinstance(step[0], list) and fixed is not None:
        return [step[0][i] for i in fixed]
    if isinstance(step[0], np.ndarray) and isinstance(index, np.ndarray):
        return np.take(step[0], index, axis)
    x = build.tensor(step[0])
    if isinstance(index, np.ndarray) and index.ndim == 0:
        return build.call(torch.select, x, axis, int(index))
    return build.call(onnx_gather, x, build.tensor(index), axis)


def onnx_gather(x: Tensor, index: Tensor, axis: int) -> Tensor:
    axis %= x.dim()
    index = torch.where(index < 0, index + x.shape[axis], index)
    if axis == 0 and x.dim() == 2:
        return F.embedding(index, x)
    taken = torch.index_select(x, axis, index.reshape(-1))
    return taken.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


@handles("Squeeze")
def squeeze(build: OnnxBuilder, step: Step) -> Value:
    if isinstance(step[0], list):
        return step[0]
    axes = step.attribute("axes")
    if axes is None and step[1] is not None:
        axes = build.fixed(step, 1, "its axes")
    if isinstance(step[0], np.ndarray):
        return np.squeeze(step[0], None if axes is None else tuple(axes))
    x = build.tensor(step[0])
    return (
        build.call(torch.squeeze, x) if axes is None else build.call(torch.squeeze, x, tuple(axes))
    )


@handles("Unsqueeze")
def unsqueeze(build: OnnxBuilder, step: Step) -> Value:
    axes = step.attribute("axes")
    axes = list(axes) if axes is not None else build.fixed(step, 1, "its axes")
    if isinstance(step[0], list):
        return step[0]
    if isinstance(step[0], np.ndarray):
        return np.expand_dims(step[0], tuple(axes))
    x = build.tensor(step[0])
    if len(axes) > 1 and min(axes) < 0:
        raise build.refuse(step, f"axes {axes} are not read, only positive ones together")
    for axis in sorted(axes):
        x = build.call(torch.unsqueeze, x, axis)
    return x


@handles("Expand")
def expand(build: OnnxBuilder, step: Step) -> Value:
    sizes = build.fixed(step, 1, "its shape")
    return build.call(onnx_expand, build.tensor(step[0]), sizes)


def onnx_expand(x: Tensor, sizes: list[int]) -> Tensor:
    """Sizes of 1 keep what is there, as broadcasting does."""
    own = [1] * (len(sizes) - x.dim()) + list(x.shape)
    sizes = [1] * (len(own) - len(sizes)) + list(sizes)
    return x.expand(
        [a if isinstance(n, int) and n == 1 else n for a, n in zip(own, sizes, strict=True)]
    )


@handles("Tile")
def tile(build: OnnxBuilder, step: Step) -> Value:
    return build.call(torch.tile, build.tensor(step[0]), build.fixed(step, 1, "its repeats"))


@handles("Pad")
def pad(build: OnnxBuilder, step: Step) -> Value:
    pads = build.fixed(step, 1, "its width")
    mode = step.attribute("mode", "constant")
    axes = build.fixed(step, 3, "its axes") if step[3] is not None else None
    count = len(pads) // 2
    if axes is not None:
        rank = build.rank(step.node.input[0])
        if rank is None:
            raise build.refuse(step, "the rank of its input is not known")
        wide = [0] * 2 * rank
        for i, axis in enumerate(axes):
            wide[axis % rank], wide[axis % rank + rank] = pads[i], pads[i + count]
        pads, count = wide, rank
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise build.refuse(step, f"mode {mode!r} is not read")
    pairs = [n for axis in reversed(range(count)) for n in (pads[axis], pads[axis + count])]
    while len(pairs) > 2 and pairs[-1] == 0 and pairs[-2] == 0:
        del pairs[-2:]
    value = float(np.reshape(step[2], ())) if mode == "constant" and step[2] is not None else None
    name = {"edge": "replicate", "wrap": "circular"}.get(mode, mode)
    return build.call(F.pad, build.tensor(step[0]), pairs, name, value)


@handles("DepthToSpace", "SpaceToDepth")
def depth_and_space(build: OnnxBuilder, step: Step) -> Value:
    size, x = step.attribute("blocksize"), build.tensor(step[0])
    if step.node.op_type == "SpaceToDepth":
        if step.attribute("mode", "DCR") != "DCR":
            raise build.refuse(step, "mode CRD is not read")
        return build.call(space_to_depth, x, size)
    if step.attribute("mode", "DCR") == "CRD":
        return build.call(F.pixel_shuffle, x, size)
    return build.call(depth_to_space, x, size)


def depth_to_space(x: Tensor, size: int) -> Tensor:
    n, c, h, w = x.shape
    x = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // size**2, h * size, w * size)


def space_to_depth(x: Tensor, size: int) -> Tensor:
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * size**2, h // size, w // size)


@handles("Resize")
def resize(build: OnnxBuilder, step: Step) -> Value:
    mode = step.attribute("mode", "nearest")
    how = step.attribute("coordinate_transformation_mode", "half_pixel")
    scales, sizes = step[2], step[3]
    for name, default in (
        ("antialias", 0), ("exclude_outside", 0), ("axes", None),
        ("keep_aspect_ratio_policy", "stretch"),
    ):  # fmt: skip
        if step.attribute(name, default) != default:
            raise build.refuse(step, f"{name} is not read")
    options: dict[str, Any] = {}
    if sizes is not None:
        options["size"] = build.fixed(step, 3, "its size")[2:]
    elif isinstance(scales, np.ndarray) and scales.size > 2:
        options["scale_factor"] = [float(s) for s in scales[2:]]
    else:
        raise build.refuse(step, "its scales are computed from data")
    count = len(next(iter(options.values())))
    x = build.tensor(step[0])
    if mode == "nearest":
        if how != "asymmetric" or step.attribute("nearest_mode", "round_prefer_floor") != "floor":
            whole = all(s == int(s) for s in options.get("scale_factor", [0.5]))
            if not (how == "half_pixel" and whole):
                raise build.refuse(step, f"nearest with {how} is not read")
        return build.call(F.interpolate, x, mode="nearest", **options)
    if mode not in ("linear", "cubic") or how not in (
        "half_pixel", "pytorch_half_pixel", "align_corners",
    ):  # fmt: skip
        raise build.refuse(step, f"{mode} with {how} is not read")
    if how == "align_corners" and "scale_factor" in options:
        raise build.refuse(step, "align_corners is read with sizes, not with scales")
    if how == "pytorch_half_pixel" and 1 in options.get("size", ()):
        raise build.refuse(step, "a size of 1 is not read")
    if mode == "cubic" and (count != 2 or step.attribute("cubic_coeff_a", -0.75) != -0.75):
        raise build.refuse(step, "cubic is read for pictures and a = -0.75 only")
    linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[count]
    name = linear if mode == "linear" else "bicubic"
    return build.call(F.interpolate, x, mode=name, align_corners=how == "align_corners", **options)
