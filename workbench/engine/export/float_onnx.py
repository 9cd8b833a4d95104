"""The float ONNX model of a captured network: standard operators, layers named by their path."""

from __future__ import annotations

import ast
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor

from workbench.engine.errors import CaptureError, WrongState, WrongValue
from workbench.engine.export.cleaning import clean, rename_symbol
from workbench.engine.export.rnn_translation import TRANSLATIONS as RNN_TRANSLATIONS
from workbench.engine.export.rnn_translation import (
    complete_outputs,
    fold_recurrent_weights,
    replace_recurrent_weight,
)
from workbench.engine.export.torchlib import kept_torchlib
from workbench.engine.export.translations import TRANSLATIONS
from workbench.engine.graph.capture import Captured
from workbench.engine.graph.folding import FoldPlan
from workbench.engine.graph.functional import direct_program
from workbench.engine.graph.program import LAYER_MARK, TAP_MARK
from workbench.engine.graph.quiet import quiet
from workbench.engine.graph.rnn import RNN_TYPES

OPSET = 18
BATCH = "batch"
"""The name of the dynamic dimension 0 unless ``dynamic_axes`` gives another."""

_LAYER_NODES = ("Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool", "LSTM", "GRU", "RNN")
_TAP_NODES = ("Add", "Concat")
_SCOPES = "pkg.torch.onnx.name_scopes"
_NO_SCOPE = "_empty_nn_module_stack_from_metadata_hook"

logger = logging.getLogger("workbench.engine.export")

DynamicAxes = Mapping[str, Mapping[int, str] | Sequence[int]]


def to_onnx(
    captured: Captured,
    plan: FoldPlan | None,
    *,
    weights: Mapping[str, Tensor] | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_axes: DynamicAxes | None = None,
) -> ir.Model:
    """Convert a captured model to ONNX (opset 18) without merging or renaming its layers.

    ``plan``: BatchNorms to fold (None keeps all). ``weights``: layer name -> tensor of the weight's
    shape that replaces it, after folding. A layer's node bears its module path, a tap's node its
    key, any other ``<scope>#<optype><n>``. Initialisers are views of the captured parameters until
    the model is serialised. Raises ``WrongState`` for malformed names or axes (chapter 10 section
    3.3), ``WrongValue`` for an unknown layer or a weight of another shape, ``CaptureError`` for an
    operator without an ONNX form.
    """
    _check_names(input_names, "input_names")
    _check_names(output_names, "output_names")
    _check_axes(dynamic_axes)
    model = _convert(captured)
    scopes = {node: _scopes(node) for node in ir.traversal.RecursiveGraphIterator(model.graph)}
    layers = _marked(scopes, LAYER_MARK, _LAYER_NODES)
    taps = _marked(scopes, TAP_MARK, _TAP_NODES)
    _check_found(captured, layers)
    fold_recurrent_weights(model, {node: name for name, node in layers.items()})
    _canonical_parameters(model, layers)
    if plan is not None:
        _fold(model, plan, layers)
    _replace_weights(model, weights or {}, layers)
    clean(model)
    _name_nodes(model, scopes, layers, taps)
    complete_outputs(model)
    _rename(model, model.graph.inputs, input_names, "input_names")
    _rename(model, model.graph.outputs, output_names, "output_names")
    _name_batch(model, dynamic_axes)
    common.ClearMetadataAndDocStringPass()(model)
    model.producer_name = "compression-workbench"
    model.producer_version = None
    return model


def _convert(captured: Captured) -> ir.Model:
    try:
        with quiet(), kept_torchlib(), torch.no_grad():
            converted = torch.onnx.export(
                direct_program(captured.program),
                dynamo=True,
                optimize=False,
                opset_version=OPSET,
                verbose=False,
                custom_translation_table=TRANSLATIONS | RNN_TRANSLATIONS,
            )
    except Exception as error:
        cause = error.__cause__ or error
        lines = [line for line in str(cause).splitlines() if line.strip()]
        raise CaptureError(
            f"the captured model has no ONNX form: {lines[0] if lines else type(cause).__name__}",
            where=type(captured.module).__name__,
            hint="Flows that write no ONNX file (quantize()/convert(), single-operator "
            "quantisation-aware training, KV-cache) remain.",
        ) from error
    if converted is None:
        raise CaptureError("the exporter gave no model.", where=type(captured.module).__name__)
    model: ir.Model = converted.model
    return model


def _scopes(node: ir.Node) -> list[str]:
    text = node.metadata_props.get(_SCOPES)
    if text is None:
        return []
    scopes: list[str] = ast.literal_eval(text)
    return ["" if scope == _NO_SCOPE else scope for scope in scopes[:-1]]


def _marked(
    scopes: Mapping[ir.Node, list[str]], prefix: str, operators: Collection[str]
) -> dict[str, ir.Node]:
    """The node of each marked name: of a mark's nodes, the first of the right type."""
    found: dict[str, ir.Node] = {}
    for node, path in scopes.items():
        if path and path[-1].startswith(prefix) and node.op_type in operators:
            found.setdefault(path[-1].removeprefix(prefix), node)
    return found


def _check_found(captured: Captured, layers: Mapping[str, ir.Node]) -> None:
    lost = [name for name, info in captured.layers.items() if info.eligible and name not in layers]
    if lost:
        raise CaptureError(
            f"the ONNX form of {', '.join(lost)} is not the one operator expected of the layer.",
            hint="List these layers in skip_layers, or report the model.",
        )


def _canonical_parameters(model: ir.Model, layers: Mapping[str, ir.Node]) -> None:
    """Name a layer's initialisers by its path, whichever of its module's names it ran under."""
    stored = model.graph.initializers
    for name, node in layers.items():
        if node.op_type in RNN_TYPES:
            continue
        for value, part in zip(node.inputs[1:3], ("weight", "bias"), strict=False):
            producer = value.producer() if value is not None else None
            if producer is not None and producer.op_type == "Transpose":
                value = producer.inputs[0]
            wanted = f"{name}.{part}"
            if value is None or not value.is_initializer() or wanted in stored:
                continue
            if len(value.uses()) == 1:
                del stored[str(value.name)]
                value.name = wanted
                model.graph.register_initializer(value)


def _fold(model: ir.Model, plan: FoldPlan, layers: Mapping[str, ir.Node]) -> None:
    for pair in plan.pairs:
        conv = layers[pair.conv]
        users = [user for user, _ in conv.outputs[0].uses()]
        if len(users) != 1 or users[0].op_type != "BatchNormalization":
            raise CaptureError(
                f"{pair.bn} does not follow {pair.conv} in the ONNX graph.",
                hint=f"List {pair.conv} in skip_fusion_layers.",
            )
        norm = users[0]
        old = conv.inputs[1]
        weight = _add(model, f"{pair.conv}.weight", pair.weight, instead=old)
        bias_name = f"{pair.conv}.bias"
        before = conv.inputs[2] if len(conv.inputs) > 2 else None
        bias = _add(model, bias_name, pair.bias, instead=before)
        conv.resize_inputs(3)
        conv.replace_input_with(1, weight)
        conv.replace_input_with(2, bias)
        made, wanted = conv.outputs[0], norm.outputs[0]
        name, shape = wanted.name, wanted.shape
        wanted.replace_all_uses_with(made, replace_graph_outputs=True)
        model.graph.remove(norm, safe=True)
        if made.is_graph_output():
            made.name = name
        if made.shape is None:
            made.shape = shape


def _replace_weights(
    model: ir.Model, weights: Mapping[str, Tensor], layers: Mapping[str, ir.Node]
) -> None:
    for name, tensor in weights.items():
        node = layers.get(name)
        if node is not None and node.op_type in RNN_TYPES:
            replace_recurrent_weight(model, node, name, tensor)
            continue
        old = node.inputs[1] if node is not None and len(node.inputs) > 1 else None
        if node is None or old is None:
            raise WrongValue("is no layer with a weight in this model.", where=f"weights[{name!r}]")
        producer = old.producer()
        # A MatMul reads its weight through a Transpose that cleaning folds later.
        holder, index = (node, 1) if producer is None else (producer, 0)
        stored = holder.inputs[index]
        if stored is None or stored.shape is None or tuple(stored.shape) != tuple(tensor.shape):
            raise WrongValue(
                f"has shape {tuple(tensor.shape)}; the layer's weight has "
                f"{stored.shape if stored is not None else None}.",
                where=f"weights[{name!r}]",
            )
        value = _add(model, f"{name}.weight", tensor, instead=stored)
        holder.replace_input_with(index, value)


def _add(model: ir.Model, name: str, tensor: Tensor, *, instead: ir.Value | None) -> ir.Value:
    """Register an initialiser, taking the place of ``instead`` when nothing else reads that."""
    graph = model.graph
    if instead is not None and instead.is_initializer() and len(instead.uses()) == 1:
        del graph.initializers[str(instead.name)]
    if name in graph.initializers:
        raise WrongState(f"the graph already has an initialiser {name}.")
    held = TorchTensor(tensor.detach(), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(held.shape), type=ir.TensorType(held.dtype), const_value=held
    )
    graph.register_initializer(value)
    return value


def _name_nodes(
    model: ir.Model,
    scopes: Mapping[ir.Node, list[str]],
    layers: Mapping[str, ir.Node],
    taps: Mapping[str, ir.Node],
) -> None:
    fixed = {node: name for name, node in (*layers.items(), *taps.items())}
    taken = set(fixed.values())
    counts: dict[str, int] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node in fixed:
            node.name = fixed[node]
            continue
        pad = _pads(node, fixed)
        if pad and pad not in taken:
            node.name = pad
            taken.add(pad)
            continue
        path = scopes.get(node) or [""]
        real = [p for p in path if not p.startswith((LAYER_MARK, TAP_MARK))]
        stem = f"{real[-1] if real else ''}#{node.op_type.lower()}"
        count = counts.get(stem, 0)
        while f"{stem}{count}" in taken:
            count += 1
        counts[stem] = count + 1
        node.name = f"{stem}{count}"


def _pads(node: ir.Node, fixed: Mapping[ir.Node, str]) -> str:
    """``<layer>_pad`` for a Pad that only feeds a layer (chapter 10 section 6.3), else ''."""
    users = [user for user, _ in node.outputs[0].uses()] if node.op_type == "Pad" else []
    return f"{fixed[users[0]]}_pad" if len(users) == 1 and users[0] in fixed else ""


def _name_batch(model: ir.Model, dynamic_axes: DynamicAxes | None) -> None:
    symbol, named = None, BATCH
    batch_axes = {0}
    for value in model.graph.inputs:
        sizes = list(value.shape or ())
        dynamic = [axis for axis, size in enumerate(sizes) if not isinstance(size, int)]
        batch_axes.update(dynamic)
        if symbol is None and dynamic:
            symbol = str(sizes[dynamic[0]])
    known = [str(value.name) for value in (*model.graph.inputs, *model.graph.outputs)]
    for name, axes in (dynamic_axes or {}).items():
        if name not in known:
            logger.warning(
                "dynamic_axes[%r]: no input or output has this name; there are %s.",
                name,
                ", ".join(known),
            )
            continue
        if isinstance(axes, Mapping):
            named = next((axes[axis] for axis in sorted(batch_axes) if axis in axes), named)
        fixed = [axis for axis in axes if axis not in batch_axes]
        if fixed or symbol is None:
            logger.warning(
                "dynamic_axes[%r]: axes %s stay fixed; only the batch dimension is dynamic.",
                name,
                fixed or list(axes),
            )
    if symbol is not None:
        rename_symbol(model, symbol, named)


def _rename(
    model: ir.Model, values: Sequence[ir.Value], names: Sequence[str] | None, argument: str
) -> None:
    if names is None:
        return
    if len(names) > len(values) or len(set(names)) != len(names):
        raise WrongState(
            f"has {len(names)} names ({', '.join(names)}); the model has {len(values)} and each "
            "name may be used once.",
            where=argument,
        )
    renamed = values[: len(names)]
    others = {str(v.name): v for v in _values(model) if all(v is not one for one in renamed)}
    for index, name in enumerate(names):
        other = others.get(name)
        if other is None:
            continue
        if other.is_initializer() or other.is_graph_input() or other.is_graph_output():
            raise WrongState(
                f"the name {name!r} is that of another input, output or weight of the model.",
                where=f"{argument}[{index}]",
            )
        inside = f"{name}_inside"
        while inside in others or inside in names:
            inside += "_"
        other.name = inside
    for value, name in zip(renamed, names, strict=True):
        value.name = name


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        yield from node.outputs


def _check_names(names: Sequence[str] | None, argument: str) -> None:
    if names is not None and (
        isinstance(names, str) or not all(isinstance(name, str) for name in names)
    ):
        raise WrongState(f"is {names!r}; allowed: a list of texts, or None.", where=argument)


def _check_axes(axes: Any) -> None:
    if axes is None:
        return
    ok = isinstance(axes, Mapping) and all(
        isinstance(name, str)
        and isinstance(chosen, (Mapping, list, tuple))
        and all(isinstance(axis, int) and axis >= 0 for axis in chosen)
        and (not isinstance(chosen, Mapping) or all(isinstance(v, str) for v in chosen.values()))
        for name, chosen in axes.items()
    )
    if not ok:
        raise WrongState(
            f"is {axes!r}; allowed: {{name: {{axis: name}}}} or {{name: [axes]}} with axes from 0 "
            "up, or None.",
            where="dynamic_axes",
        )
