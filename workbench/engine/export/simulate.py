"""The deploy file computed with integers: what the accelerator would give.

Source: chapter 10 sections 2 and 13.3, D22, index decision 20.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from workbench.engine.errors import MissingFile, WrongState
from workbench.engine.export import integer_rnn
from workbench.engine.export.arithmetic import (
    INT32_MAX,
    INT32_MIN,
    unpack_dequant_parameter,
)
from workbench.engine.export.integer_ops import attributes_of, compute
from workbench.engine.export.segments import Segment, node_reads
from workbench.engine.numerics.integer import int_range

log = logging.getLogger("workbench.export")

Array = NDArray[Any]
_CHANNEL_AXIS_1 = ("Conv", "ConvTranspose")


@dataclass(frozen=True)
class SimulatedLayer:
    """A quantised layer of the file; ``step`` is its largest scale_d·scale_w."""

    name: str
    output: str
    step: float


class DeploySimulator:
    """Runs a deploy file. Integer nodes are computed exactly, all others in ONNX Runtime.

    Accumulators are sums of integers held in float64, which are exact below 2**53 (an int8 layer
    would need 2**37 terms to get there; int16 activations 2**29) and much faster than int64. The
    offset is subtracted first, so padding adds 0. Average pooling is the float32 mean of the codes.
    Of LSTM and GRU ``export/integer_rnn.py`` says what is modelled.
    ``overflows`` counts, per layer, the accumulators of all runs that do not fit in int32.
    """

    def __init__(self, deploy_path: str | os.PathLike[str]) -> None:
        if not os.path.isfile(deploy_path):
            raise MissingFile(
                f"there is no deploy file {os.fspath(deploy_path)!r}",
                hint="Export the model first.",
            )
        model = onnx.load(deploy_path)
        graph = model.graph
        self._constants = {t.name: t for t in graph.initializer}
        self.input_names = tuple(i.name for i in graph.input if i.name not in self._constants)
        self.output_names = tuple(o.name for o in graph.output)
        self.overflows: dict[str, int] = {}
        self._tensors: dict[str, Tensor] = {}
        self._makers = {name: node.op_type for node in graph.node for name in node.output}
        zone = _integer_zone(graph)
        integer_outputs = {name for i in zone for name in graph.node[i].output}
        self._steps = self._schedule(model, zone)
        self._pools = {
            node.name: Segment(
                model, [node], {}, {node.input[0]: onnx.TensorProto.FLOAT}, node.output
            )
            for node in graph.node
            if node.op_type == "AveragePool" and node.output[0] in integer_outputs
        }
        self.layers = self._find_layers(graph)
        self._last_use = self._lifetimes()

    def run(
        self, inputs: dict[str, NDArray[np.generic]], *, taps: bool = False
    ) -> dict[str, NDArray[np.generic]]:
        """Graph outputs by name; with ``taps`` also each quantised layer's output by layer name.

        Taps are float (after the dequantisation). Raises ``RuntimeError`` for a missing input.
        """
        missing = [name for name in self.input_names if name not in inputs]
        if missing:
            raise WrongState(
                f"inputs are missing: {', '.join(missing)}; given: {', '.join(inputs)}",
                where="DeploySimulator.run",
            )
        values: dict[str, Any] = {name: inputs[name] for name in self.input_names}
        kept = {layer.output for layer in self.layers} if taps else set()
        kept |= set(self.output_names)
        for index, step in enumerate(self._steps):
            if isinstance(step, Segment):
                step.run(values)
            elif step.op_type in integer_rnn.KINDS:
                self._run_recurrent(step, values)
            else:
                values[step.output[0]] = self._compute(step, values)
            for name in self._last_use.get(index, ()):
                if name not in kept:
                    values.pop(name, None)
        result = {name: values[name] for name in self.output_names}
        if taps:
            result.update({layer.name: values[layer.output] for layer in self.layers})
        return result

    def _schedule(self, model: onnx.ModelProto, zone: set[int]) -> list[Segment | onnx.NodeProto]:
        """All float nodes that can run, as one segment; then all integer nodes; and again."""
        graph = model.graph
        types = {i.name: i.type.tensor_type.elem_type for i in graph.input}
        floats = [n for i, n in enumerate(graph.node) if i not in zone]
        integers = [n for i, n in enumerate(graph.node) if i in zone]
        known = set(types) | set(self._constants) | {""}
        steps: list[Segment | onnx.NodeProto] = []
        outside = {name for node in integers for name in node_reads(node)} | set(self.output_names)
        while floats or integers:
            ready = _take_ready(floats, known)
            if ready:
                later = {name for node in floats for name in node_reads(node)}
                segment = Segment(model, ready, self._constants, types, sorted(outside | later))
                types.update(segment.types)
                steps.append(segment)
            exact = _take_ready(integers, known)
            steps += exact
            for node in exact:
                half = node.op_type == "AscendDequant" and attributes_of(node).get("dtype", 0) == 1
                if node.op_type in integer_rnn.KINDS:
                    types.update(dict.fromkeys(node.output, onnx.TensorProto.FLOAT))
                    continue
                types[node.output[0]] = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
            if not ready and not exact:
                stuck = (floats or integers)[0]
                raise WrongState(f"node {stuck.name!r} reads a value that nothing makes")
        return steps

    def _lifetimes(self) -> dict[int, list[str]]:
        last: dict[str, int] = {}
        for index, step in enumerate(self._steps):
            names = step.inputs if isinstance(step, Segment) else list(step.input)
            last.update(dict.fromkeys(names, index))
        result: dict[int, list[str]] = {}
        for name, index in last.items():
            result.setdefault(index, []).append(name)
        return result

    def _find_layers(self, graph: onnx.GraphProto) -> tuple[SimulatedLayer, ...]:
        found = []
        for node in graph.node:
            if node.op_type == "AscendDequant":
                deq = self._dequant_scale(node)
                name = node.name.removesuffix(".dequant")
                found.append(SimulatedLayer(name, node.output[0], float(deq.max())))
            elif node.op_type in integer_rnn.KINDS:
                words = numpy_helper.to_array(self._constants[node.input[-1]])
                step = float(unpack_dequant_parameter(words.astype(np.uint64)).max())
                found.append(SimulatedLayer(node.name, node.output[0], step))
        return tuple(found)

    def _dequant_scale(self, node: onnx.NodeProto) -> NDArray[np.float32]:
        words = numpy_helper.to_array(self._constants[node.input[1]])
        return unpack_dequant_parameter(words.astype(np.uint64))

    def _run_recurrent(self, node: onnx.NodeProto, values: dict[str, Any]) -> None:
        operands = [
            None
            if not name
            else values[name]
            if name in values
            else numpy_helper.to_array(self._constants[name])
            for name in node.input
        ]
        outputs, bad = integer_rnn.run_recurrent(node, operands)
        values.update((name, y) for name, y in zip(node.output, outputs, strict=True) if name)
        self._count_overflows(node.name, bad)

    def _count_overflows(self, name: str, bad: int) -> None:
        if bad:
            self.overflows[name] = self.overflows.get(name, 0) + bad
            log.warning("layer %s: %d accumulators do not fit in int32", name, bad)

    def _compute(self, node: onnx.NodeProto, values: dict[str, Any]) -> Any:
        kind = node.op_type
        if kind == "AscendQuant":
            return self._quantize(node, values[node.input[0]])
        if kind == "AscendDequant":
            return self._dequantize(node, values[node.input[0]])
        if kind == "AveragePool":
            pooled = {node.input[0]: values[node.input[0]].numpy()}
            self._pools[node.name].run(pooled)
            mean: Tensor = torch.from_numpy(pooled[node.output[0]])
            return mean
        operands = [self._operand(name, values) for name in node.input]
        return compute(node, operands)

    def _operand(self, name: str, values: dict[str, Any]) -> Tensor | None:
        if not name:
            return None
        if name in values:
            value: Tensor = values[name]
            return value
        if name not in self._tensors:
            array = np.ascontiguousarray(numpy_helper.to_array(self._constants[name]))
            self._tensors[name] = torch.from_numpy(array.copy())
        return self._tensors[name]

    def _quantize(self, node: onnx.NodeProto, x: Array) -> Tensor:
        """Codes minus the offset: integers in float32."""
        settings = attributes_of(node)
        offset = settings["offset"]
        low, high = int_range(int(settings["dst_type"].decode()[3:]))
        codes: Tensor = torch.from_numpy(np.ascontiguousarray(x, np.float32)) * settings["scale"]
        return codes.round_().clamp_(low - offset, high - offset)

    def _dequantize(self, node: onnx.NodeProto, accumulator: Tensor) -> Array:
        name = node.name.removesuffix(".dequant")
        if accumulator.dtype == torch.float64:
            bad = int(((accumulator > INT32_MAX) | (accumulator < INT32_MIN)).sum())
            self._count_overflows(name, bad)
        deq = torch.from_numpy(self._dequant_scale(node))
        if self._makers[node.input[0]] in _CHANNEL_AXIS_1:
            deq = deq.reshape(1, -1, *([1] * (accumulator.dim() - 2)))
        y = accumulator.float() * deq
        half = attributes_of(node).get("dtype", 0) == 1
        result: Array = (y.half() if half else y).numpy()
        return result


def _take_ready(nodes: list[onnx.NodeProto], known: set[str]) -> list[onnx.NodeProto]:
    """Remove from ``nodes`` what can run with the ``known`` values, which grow accordingly."""
    ready = []
    rest = []
    for node in nodes:
        if all(name in known for name in node_reads(node)):
            ready.append(node)
            known.update(node.output)
        else:
            rest.append(node)
    nodes[:] = rest
    return ready


def _integer_zone(graph: onnx.GraphProto) -> set[int]:
    """Indices of the nodes from AscendQuant to AscendDequant, and of what only they read."""
    zone: set[int] = set()
    integers: set[str] = set()
    makers: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        makers.update(dict.fromkeys(node.output, index))
        if node.op_type == "AscendDequant" or node.op_type in integer_rnn.KINDS:
            zone.add(index)
        elif node.op_type == "AscendQuant" or any(name in integers for name in node.input):
            zone.add(index)
            integers.update(node.output)
    for index in sorted(zone):
        node = graph.node[index]
        if node.op_type != "AscendQuant" and node.op_type not in integer_rnn.KINDS:
            zone |= {makers[name] for name in node.input if name in makers}
    return zone
