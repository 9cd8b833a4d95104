"""``convert_qat_model``: an ONNX model with Q/DQ pairs in, the fake-quant and the deploy file out.

Source: specification chapter 30 section 10, index decision 24. The pairs become record entries, and
the passes of ``save_model`` do the rest.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import common

from workbench.engine.errors import MissingFile, WrongState, WrongType, WrongValue
from workbench.engine.events import CancelToken, OnEvent
from workbench.engine.export.deploy import finish_deploy
from workbench.engine.export.edits import (
    Names,
    constant_node,
    insert_on_input,
    make_node,
    new_initializer,
)
from workbench.engine.export.external import remember_external
from workbench.engine.export.fake_quant import expand_fake_quant
from workbench.engine.export.insert import insert_quantization, quant_node
from workbench.engine.export.plan import QuantizedNode, plan_layers
from workbench.engine.export.qdq_patterns import (
    Grid,
    Unfit,
    channel_scales,
    check_converted,
    constant_input,
    dynamic_input,
    is_constant,
    is_quantised,
    node_grid,
)
from workbench.engine.export.save import output_paths
from workbench.engine.export.staging import write_models
from workbench.engine.files.atomic import ensure_writable
from workbench.engine.files.record import LayerRecord, Record, write_record

log = logging.getLogger("workbench.export")

OLDEST_OPSET = 11
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_RECURRENT = ("LSTM", "GRU", "RNN")
_OPERANDS = ("Add", "MatMul")
"""Nodes whose inputs are quantised for transport and computed with in float."""


@dataclass
class _Converted:
    """A float model and what its Q/DQ pairs said.

    ``operands``: inputs of an Add or a MatMul of two activations. ``outputs``: QuantizeLinear nodes
    that feed a graph output; they are still there.
    """

    model: ir.Model
    layers: dict[str, LayerRecord] = field(default_factory=dict)
    operands: list[tuple[ir.Node, int, Grid]] = field(default_factory=list)
    outputs: list[ir.Node] = field(default_factory=list)

    def record(self) -> Record:
        operands = {f"{node.name}#{index}": _entry(grid) for node, index, grid in self.operands}
        return Record(self.layers | operands)

    def plan(self, source: str) -> list[QuantizedNode]:
        return plan_layers(self.model, Record(self.layers), source=source) if self.layers else []


def convert_qat_model(
    model_file: str,
    save_path: str,
    record_file: str | None = None,
    *,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> None:
    """Write ``<save_path>_fake_quant_model.onnx`` and ``<save_path>_deploy_model.onnx``.

    ``model_file``: an ONNX model (opset 11 or later) with Q/DQ pairs on the input and the weight of
    Conv, ConvTranspose, Gemm and MatMul, on inputs of Add or of a MatMul of two activations, or
    with a QuantizeLinear before a graph output. ``record_file``: where the factors are written as
    text. Biases are rounded to int32, so the result differs from the source by that much.

    Raises ``TypeError`` for arguments of a wrong type, ``FileNotFoundError`` for a missing model,
    ``ValueError`` for a file that is no such model, ``RuntimeError`` naming every Q/DQ node that
    cannot be converted. Nothing is written then.
    """
    for name, argument in (("model_file", model_file), ("save_path", save_path)):
        if not isinstance(argument, str):
            raise WrongType(
                f"{name} is a {type(argument).__name__}; allowed: str", where="convert_qat_model"
            )
    if record_file is not None and not isinstance(record_file, str):
        raise WrongType(
            f"record_file is a {type(record_file).__name__}; allowed: str, None",
            where="convert_qat_model",
        )
    paths = output_paths(save_path)
    source = Path(os.path.realpath(model_file))
    if not model_file or not source.is_file():
        raise MissingFile(f"there is no ONNX file {model_file!r}", where="model_file")
    if record_file is not None:
        ensure_writable(record_file)

    def load() -> tuple[_Converted, list[QuantizedNode]]:
        converted = _convert(_load(source))
        return converted, converted.plan(str(source))

    record = load()[0].record()

    def fake_quant() -> ir.Model:
        converted, layers = load()
        _insert(converted, layers, codes=True)
        expand_fake_quant(converted.model)
        _expand_anti_quant(converted.model.graph)
        return converted.model

    def deploy() -> ir.Model:
        converted, layers = load()
        _insert(converted, layers, codes=False)
        finish_deploy(converted.model, layers)
        return converted.model

    jobs: dict[Path, tuple[str, Callable[[], ir.Model]]] = {
        paths.fake_quant: ("_fakequant.external", fake_quant),
        paths.deploy: ("_deploy.external", deploy),
    }
    write_models(jobs, on_event=on_event, cancel=cancel)
    if record_file is not None:
        write_record(os.path.realpath(record_file), record, warn_if_exists=True)


def _load(path: Path) -> ir.Model:
    try:
        model = ir.load(path)
    except DecodeError as error:
        raise WrongValue(f"it is not an ONNX file: {error}", where=str(path)) from error
    opset = model.opset_imports.get("", 0)
    if opset < OLDEST_OPSET:
        raise WrongValue(
            f"its opset is {opset}; allowed: {OLDEST_OPSET} and later", where=str(path)
        )
    remember_external(model)
    if model.functions:
        common.InlinePass()(model)
    common.IdentityEliminationPass()(model)
    common.ShapeInferencePass()(model)
    names = Names(model.graph)
    for index, node in enumerate(model.graph):
        if not node.name:
            node.name = names.node(f"{node.op_type}_{index}")
    return model


def _convert(model: ir.Model) -> _Converted:
    """Take the Q/DQ pairs out of a model; ``RuntimeError`` when one has no place to go."""
    found = _Converted(model)
    reasons: dict[str, str] = {}
    names = Names(model.graph)
    for node in list(model.graph):
        if node.domain not in ("", "ai.onnx") or node.name is None:
            continue
        try:
            if node.op_type in _LAYERS and is_constant(node.inputs[1]):
                _convert_layer(found, names, node)
            elif node.op_type in _OPERANDS:
                _convert_operands(found, names, node)
            elif node.op_type == "QuantizeLinear" and node.outputs[0].is_graph_output():
                node_grid(node)
                found.outputs.append(node)
            elif node.op_type in _RECURRENT and any(map(is_quantised, node.inputs)):
                raise Unfit("recurrent layers are not converted; leave them float")
        except Unfit as reason:
            reasons[f"{node.op_type} {node.name}"] = str(reason)
    common.RemoveUnusedNodesPass()(model)
    check_converted(model.graph, reasons, found.outputs)
    if not (found.layers or found.operands or found.outputs):
        raise WrongState(
            "the model holds no QuantizeLinear and DequantizeLinear nodes",
            hint="Export the model after eval(), with its clip bounds found.",
        )
    return found


def _convert_layer(found: _Converted, names: Names, node: ir.Node) -> None:
    data, weight = node.inputs[:2]
    assert data is not None
    assert weight is not None
    quantised = is_quantised(data), is_quantised(weight)
    if not any(quantised):
        return
    if not all(quantised):
        if quantised[0]:
            raise Unfit("its weight has no Q/DQ pair, which its input has")
        raise Unfit(
            "its input has no Q/DQ pair, which its weight has; of a layer that was exported before "
            "its clip bounds were found: run batches through the model first, then export it"
        )
    before = dynamic_input(data)
    constant = constant_input(weight)
    axis = 0 if node.op_type == "Conv" or node.attributes.get_int("transB", 0) != 0 else 1
    groups = node.attributes.get_int("group", 1)
    scales = channel_scales(constant, axis, groups, node.op_type)
    node.replace_input_with(0, before.source)
    _replace_constant(found, names, node, 1, constant.values)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and is_quantised(bias):
        _replace_constant(found, names, node, 2, constant_input(bias).values)
    found.layers[str(node.name)] = LayerRecord(
        scale_d=before.grid.scale,
        offset_d=before.grid.offset,
        scale_w=scales,
        offset_w=(0,) * len(scales),
        act_type=f"INT{before.grid.bits}",
        wts_type=f"INT{constant.bits}",
    )


def _convert_operands(found: _Converted, names: Names, node: ir.Node) -> None:
    for index, value in enumerate(node.inputs):
        if value is None or not is_quantised(value):
            continue
        if is_constant(value):
            _replace_constant(found, names, node, index, constant_input(value).values)
            continue
        before = dynamic_input(value)
        node.replace_input_with(index, before.source)
        found.operands.append((node, index, before.grid))


def _replace_constant(
    found: _Converted, names: Names, node: ir.Node, index: int, values: np.ndarray
) -> None:
    part = {1: "weight", 2: "bias"}.get(index, "constant")
    array = np.ascontiguousarray(values, np.float32)
    fresh = new_initializer(found.model.graph, array, names.value(f"{node.name}.{part}"))
    node.replace_input_with(index, fresh)


def _insert(found: _Converted, layers: list[QuantizedNode], *, codes: bool) -> None:
    graph, names = found.model.graph, Names(found.model.graph)
    for node, index, grid in found.operands:
        _insert_operand(graph, names, node, index, grid)
    insert_quantization(found.model, layers)
    for quantise in found.outputs:
        _insert_output(graph, names, quantise, codes=codes)


def _insert_operand(graph: ir.Graph, names: Names, node: ir.Node, index: int, grid: Grid) -> None:
    """``AscendQuant`` and ``AscendAntiQuant`` on one input."""
    data = node.inputs[index]
    assert data is not None
    quant = quant_node(names, str(node.name), data, grid.scale, grid.offset, grid.bits)
    anti = make_node(
        "AscendAntiQuant",
        [quant.outputs[0]],
        names.node(f"{node.name}.anti_quant"),
        names.value(f"{node.name}.anti_quant.output0"),
        {
            "scale": ir.AttrFloat32("scale", grid.scale),
            "offset": ir.AttrFloat32("offset", float(grid.offset)),
            "dst_type": ir.AttrString("dst_type", f"INT{grid.bits}"),
        },
        like=data,
    )
    insert_on_input(graph, node, index, [quant, anti])


def _insert_output(graph: ir.Graph, names: Names, quantise: ir.Node, *, codes: bool) -> None:
    """``AscendQuant`` in the place of a QuantizeLinear before a graph output.

    ``codes``: followed by what brings back the codes when ``fake_quant`` has subtracted the offset.
    """
    data, old = quantise.inputs[0], quantise.outputs[0]
    assert data is not None
    grid = node_grid(quantise)
    name = str(quantise.name)
    quant = quant_node(names, name, data, grid.scale, grid.offset, grid.bits)
    nodes = [quant]
    if codes:
        offset = constant_node(
            np.asarray(grid.offset, np.float32),
            names.node(f"{name}.offset"),
            names.value(f"{name}.offset.output0"),
        )
        shifted = make_node(
            "Add",
            [quant.outputs[0], offset.outputs[0]],
            names.node(f"{name}.codes"),
            names.value(f"{name}.codes.output0"),
            like=data,
        )
        integers = ir.DataType.INT16 if grid.bits == 16 else ir.DataType.INT8
        cast = make_node(
            "Cast",
            [shifted.outputs[0]],
            names.node(f"{name}.cast"),
            names.value(f"{name}.cast.output0"),
            {"to": ir.AttrInt64("to", int(integers))},
            like=data,
            dtype=integers,
        )
        nodes += [offset, shifted, cast]
    graph.insert_before(quantise, nodes)
    fresh = nodes[-1].outputs[0]
    fresh.name, old.name = old.name, None
    for position, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[position] = fresh
    graph.remove(quantise, safe=True)


def _expand_anti_quant(graph: ir.Graph) -> None:
    """``AscendAntiQuant`` on codes without their offset is one multiplication."""
    names = Names(graph)
    for node in list(graph):
        if node.op_type != "AscendAntiQuant":
            continue
        base = f"{node.name}.fakequant"
        scale = constant_node(
            np.asarray(node.attributes.get_float("scale", 1.0), np.float32),
            names.node(f"{base}.scale"),
            names.value(f"{base}.scale.output0"),
        )
        product = make_node(
            "Mul",
            [node.inputs[0], scale.outputs[0]],
            names.node(f"{base}.mul"),
            names.value(f"{base}.mul.output0"),
            like=node.outputs[0],
        )
        graph.insert_before(node, [scale, product])
        node.outputs[0].replace_all_uses_with(product.outputs[0])
        graph.remove(node, safe=True)


def _entry(grid: Grid) -> LayerRecord:
    return LayerRecord(scale_d=grid.scale, offset_d=grid.offset, act_type=f"INT{grid.bits}")
