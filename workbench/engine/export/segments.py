"""Pieces that ONNX Runtime can run, cut out of a file that as a whole it cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from torch import Tensor

from workbench.engine.errors import WrongState
from workbench.engine.graph.copying import CAST_DTYPES

_NEWEST_IR = 10


def session(
    model: onnx.ModelProto | str | bytes, *, optimize: bool = True, threads: int | None = None
) -> ort.InferenceSession:
    """A CPU session that keeps integer-valued convolutions exact.

    Fusing the multiplication behind a convolution into its weight would make the products inexact,
    so that one optimisation is off; ``optimize=False`` keeps every node as written.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    payload = model if isinstance(model, str | bytes) else model.SerializeToString()
    return ort.InferenceSession(
        payload,
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["ConvMulFusion"],
    )


def array_of(tensor: Tensor, wanted: str) -> NDArray[Any]:
    """A tensor as the input of a file, whose type ONNX Runtime calls ``wanted``.

    The file of a float64 or bfloat16 model takes float32, as the engine's copy of it does.
    """
    value = tensor.detach().cpu()
    if value.dtype in CAST_DTYPES and wanted == "tensor(float)":
        value = value.float()
    return np.ascontiguousarray(value.numpy())


class Segment:
    """Consecutive float nodes as one session. ``types`` gives the element type of every input."""

    def __init__(
        self,
        source: onnx.ModelProto,
        nodes: Sequence[onnx.NodeProto],
        initializers: Mapping[str, onnx.TensorProto],
        types: Mapping[str, int],
        wanted: Iterable[str],
    ) -> None:
        made = {name for node in nodes for name in node.output if name}
        read = dict.fromkeys(name for node in nodes for name in node_reads(node))
        self.outputs = [name for name in dict.fromkeys(wanted) if name in made]
        self.inputs = [n for n in read if n not in made and n not in initializers]
        unknown = [name for name in self.inputs if name not in types]
        if unknown:
            raise WrongState(f"the value {unknown[0]!r} is read before any node makes it")
        graph = onnx.helper.make_graph(
            nodes,
            "segment",
            [onnx.helper.make_tensor_value_info(n, types[n], None) for n in self.inputs],
            [onnx.ValueInfoProto(name=name) for name in self.outputs],
            [initializers[name] for name in read if name in initializers],
        )
        model = onnx.helper.make_model(graph, opset_imports=source.opset_import)
        model.ir_version = min(source.ir_version, _NEWEST_IR)  # what ONNX Runtime reads
        inferred = onnx.shape_inference.infer_shapes(model)
        known = {v.name: v.type for v in (*inferred.graph.value_info, *inferred.graph.output)}
        for output in model.graph.output:
            kind = known[output.name].tensor_type.elem_type if output.name in known else 0
            output.type.tensor_type.elem_type = kind or onnx.TensorProto.FLOAT
        self.types = {o.name: o.type.tensor_type.elem_type for o in model.graph.output}
        self._session = session(model) if self.outputs else None

    def run(self, values: dict[str, NDArray[np.generic]]) -> None:
        """Add the outputs to ``values``, which holds the inputs."""
        if self._session is None:
            return
        feed = {name: values[name] for name in self.inputs}
        values.update(zip(self.outputs, self._session.run(self.outputs, feed), strict=True))


def node_reads(node: onnx.NodeProto) -> list[str]:
    """Every outer value that ``node`` reads, those of its sub-graphs included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            inside = {i.name for i in graph.input} | {t.name for t in graph.initializer}
            for child in graph.node:
                names += [name for name in node_reads(child) if name not in inside]
                inside.update(child.output)
    return names
