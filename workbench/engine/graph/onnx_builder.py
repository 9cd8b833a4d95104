"""From ONNX nodes to a module tree: the values, the names, and the table of handlers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx, nn

from workbench.engine.errors import WrongValue
from workbench.engine.graph.module_tree import ModuleTree
from workbench.engine.graph.onnx_source import Array, OnnxSource, attributes

Value = Any
"""An ``fx.Node``, a constant array, or a shape: a list of integers and nodes."""

Handler = Callable[["OnnxBuilder", "Step"], Value]
HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


class Step:
    """One node with its inputs resolved: ``args[i]`` is None where the input is left out."""

    def __init__(self, node: onnx.NodeProto, args: list[Value], title: str) -> None:
        self.node = node
        self.args = args
        self.title = title
        self.attributes = attributes(node)

    def __getitem__(self, index: int) -> Value:
        return self.args[index] if index < len(self.args) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)


class OnnxBuilder:
    """Turns the nodes into a graph, one after the other."""

    def __init__(self, source: OnnxSource) -> None:
        self.source = source
        self.opset = source.opset
        self.tree = ModuleTree(str(source.path))
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in source.nodes:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self._values: dict[str, Value] = dict(source.constants)
        self._stored: dict[int, fx.Node] = {}
        self._leaves: set[str] = set()
        self._parents: set[str] = set()

    def model(self) -> nn.Module:
        for name in self.source.inputs:
            self._values[name] = self.tree.input(plain_name(name))
        for index, node in enumerate(self.source.nodes):
            if all(name in self._values for name in node.output if name):
                continue  # done together with a node before it
            step = Step(
                node, [self._values[n] if n else None for n in node.input], self._title(node, index)
            )
            self.give(step, HANDLERS[node.op_type](self, step))
        outputs = [self.tensor(self._values[name]) for name in self.source.outputs]
        return self.tree.finish(outputs[0] if len(outputs) == 1 else tuple(outputs))

    def give(self, step: Step, result: Value) -> None:
        results = result if isinstance(result, tuple) else (result,)
        for index, name in enumerate(step.node.output):
            if index < len(results):
                self._values[name] = results[index]
            elif name in self.consumers or name in self.source.outputs:
                raise self.refuse(step, f"its output {name!r} is not read")

    def alias(self, name: str, value: Value) -> None:
        """The value of an output of a later node that is computed here already."""
        self._values[name] = value

    # -- values ---------------------------------------------------------------------------------

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        return self.tree.call(target, args, kwargs)

    def tensor(self, value: Value) -> fx.Node:
        """The value as a node of the graph; constants are stored in the module."""
        if isinstance(value, fx.Node):
            return value
        if isinstance(value, list):
            if all(isinstance(n, int) for n in value):
                value = np.array(value, np.int64)
            else:
                # A shape that is used as data: its numbers become a tensor.
                parts = [self.call(torch.scalar_tensor, n, dtype=torch.int64) for n in value]
                return self.call(torch.stack, parts)
        key = id(value)
        if key not in self._stored:
            path = self.name(f"constant_{len(self._stored)}")
            self._stored[key] = self.tree.add_tensor(path, to_tensor(value), trained=False)
        return self._stored[key]

    def ints(self, value: Value) -> list[Any] | None:
        """The value as a shape, or None when it is a tensor."""
        if isinstance(value, list):
            return value
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.ndim < 2:
            return [int(n) for n in value.reshape(-1)]
        return None

    def fixed(self, step: Step, index: int, what: str) -> list[Any]:
        """An input that must be a shape or a constant list of integers."""
        found = self.ints(step[index])
        if found is None:
            raise self.refuse(step, f"{what} is computed from data")
        return found

    def rank(self, name: str) -> int | None:
        shape = self.source.shapes.get(name)
        if shape is None and name in self.source.constants:
            return int(self.source.constants[name].ndim)
        return None if shape is None else len(shape)

    # -- names ----------------------------------------------------------------------------------

    def name(self, wanted: str) -> str:
        """``wanted`` as a path of the module tree that nothing else has, and nothing lies under."""
        parts = [p for p in re.sub(r"[^\w.]|[^\x00-\x7f]", "_", wanted).split(".") if p] or ["node"]
        if any(".".join(parts[:n]) in self._leaves for n in range(1, len(parts))):
            parts = ["_".join(parts)]
        base = path = ".".join(parts)
        number = 1
        while path in self._leaves or path in self._parents:
            number += 1
            path = f"{base}_{number}"
        self._leaves.add(path)
        self._parents.update(".".join(parts[:n]) for n in range(1, len(parts)))
        return path

    def layer_path(self, step: Step, weight_index: int) -> str:
        """Where the layer of a node lies: its weight's owner, or else the node's own name."""
        weight = step.node.input[weight_index]
        if re.fullmatch(r"[A-Za-z0-9_.]+\.weight", weight):
            return self.name(weight.removesuffix(".weight"))
        return self.node_path(step)

    def node_path(self, step: Step) -> str:
        """A node's name as a path; torch ends it with the operator, as in ``/stem/conv/Conv``."""
        parts = step.title.strip("/").split("/")
        if len(parts) > 1 and re.fullmatch(rf"{step.node.op_type}(_\d+)?", parts[-1]):
            del parts[-1]
        return self.name(".".join(parts))

    def refuse(self, step: Step, why: str) -> WrongValue:
        return WrongValue(
            f"{step.node.op_type} {step.title!r}: {why}",
            where=str(self.source.path),
            hint="Open the model that the file was exported from.",
        )

    @staticmethod
    def _title(node: onnx.NodeProto, index: int) -> str:
        return node.name or f"{node.op_type}_{index}"


def plain_name(name: str) -> str:
    """An input's name as a Python name, as torch's exporter makes it."""
    plain = re.sub(r"\W", "_", name)
    return plain if plain.isidentifier() else f"input_{plain}"


def to_tensor(array: Array) -> Tensor:
    if array.dtype.kind not in "fiub" or array.dtype.itemsize == 0:
        if str(array.dtype) == "bfloat16":
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
        raise WrongValue(f"a constant of type {array.dtype} cannot be read", where="ONNX file")
    return torch.from_numpy(np.array(array))


def torch_dtype(number: int) -> torch.dtype | None:
    """The torch data type of an ONNX element type, None where torch computes with none."""
    if number == onnx.TensorProto.BFLOAT16:
        return torch.bfloat16
    array = onnx.helper.tensor_dtype_to_np_dtype(number)
    return torch.from_numpy(np.zeros(0, array)).dtype if array.kind in "fiub" else None
