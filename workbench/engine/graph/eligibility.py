"""Which modules are layers, and why some of them stay in float (chapter 10 section 6.2)."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.fx import Node

from workbench.engine.errors import WrongState, WrongType
from workbench.engine.graph.cost import example_shape, multiply_accumulates, shape_of
from workbench.engine.graph.layers import LAYER_TYPES, LayerInfo
from workbench.engine.graph.program import Call, ProgramFacts
from workbench.engine.graph.rnn import RNN_TYPES, joined_shape
from workbench.engine.graph.rnn_rules import rnn_obstacle

_aten = torch.ops.aten

MAIN_OPERATORS: dict[str, frozenset[object]] = {
    "Conv1d": frozenset({_aten.conv1d.default, _aten.conv1d.padding}),
    "Conv2d": frozenset({_aten.conv2d.default, _aten.conv2d.padding}),
    "Conv3d": frozenset({_aten.conv3d.default, _aten.conv3d.padding}),
    "ConvTranspose1d": frozenset({_aten.conv_transpose1d.default}),
    "ConvTranspose2d": frozenset({_aten.conv_transpose2d.input}),
    "ConvTranspose3d": frozenset({_aten.conv_transpose3d.input}),
    "Linear": frozenset({_aten.linear.default}),
    "AvgPool2d": frozenset({_aten.avg_pool2d.default}),
    "LSTM": frozenset({_aten.lstm.input}),
    "GRU": frozenset({_aten.gru.input}),
    "RNN": frozenset({_aten.rnn_tanh.input, _aten.rnn_relu.input}),
}
"""Layer type -> the ATen operators that are the layer itself."""

_FAMILIES: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.Conv1d, "Conv1d"),
    (nn.Conv2d, "Conv2d"),
    (nn.Conv3d, "Conv3d"),
    (nn.ConvTranspose1d, "ConvTranspose1d"),
    (nn.ConvTranspose2d, "ConvTranspose2d"),
    (nn.ConvTranspose3d, "ConvTranspose3d"),
    (nn.Linear, "Linear"),
    (nn.AvgPool2d, "AvgPool2d"),
    (nn.LSTM, "LSTM"),
    (nn.GRU, "GRU"),
    (nn.RNN, "RNN"),
    (nn.MultiheadAttention, "MultiheadAttention"),
    (nn.Bilinear, "Bilinear"),
)
_DIMENSIONS = {"Conv1d": 3, "Conv2d": 4, "Conv3d": 5, "AvgPool2d": 4}
_UNSET = (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)
_QUANTIZABLE_DTYPES = (torch.float32, torch.float16)


def family(module: nn.Module) -> str:
    """The layer type a module is or derives from; '' for anything that is no layer."""
    for kind, name in _FAMILIES:
        if isinstance(module, kind):
            return name
    # Users may bring their own class of the same name: names count, as in the config file.
    name = type(module).__name__
    return name if name in LAYER_TYPES else ""


def check_module(module: nn.Module) -> None:
    """Raise for a model that cannot be run, or not be taken apart.

    ``WrongType`` for TorchScript, ``WrongState`` for a parameter or buffer that was never set.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise WrongType(
            "it is TorchScript, which has no layers that could be replaced.",
            where=f"model ({module.original_name})",
            hint="Give the torch.nn.Module that it was made from.",
        )
    for name, value in itertools.chain(module.named_parameters(), module.named_buffers()):
        if isinstance(value, _UNSET) or value.is_meta:
            raise WrongState(
                "has no values yet.", where=name, hint="Load or initialise the weights first."
            )


def check_weights(module: nn.Module) -> None:
    """Raise for a layer whose weight or bias cannot be quantised at all.

    ``WrongType`` for a data type other than float32 and float16, ``WrongState`` for inf or NaN;
    each names the layer.
    """
    for path, layer in module.named_modules():
        if not family(layer):
            continue
        for name, parameter in layer.named_parameters(recurse=False):
            where = f"{path}.{name}"
            if parameter.dtype not in _QUANTIZABLE_DTYPES:
                raise WrongType(
                    f"has data type {_name(parameter.dtype)}; allowed: float32, float16 "
                    "(float64 and bfloat16 are converted).",
                    where=where,
                )
            if not bool(torch.isfinite(parameter).all()):
                raise WrongState(
                    "holds inf or NaN.", where=where, hint="Check the checkpoint and its training."
                )


def find_layers(
    module: nn.Module, facts: ProgramFacts, batch: int
) -> tuple[dict[str, LayerInfo], dict[str, Node]]:
    """Every layer in execution order, and the main node of those that are called once."""
    owners: dict[int, list[str]] = {}
    for path, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(f"{path}.{name}" if path else name)

    found: list[tuple[float, LayerInfo]] = []
    nodes: dict[str, Node] = {}
    for path, layer in module.named_modules():
        kind = family(layer)
        if not kind:
            continue
        calls = facts.calls.get(path, [])
        main = _main_node(calls, kind) if len(calls) == 1 else None
        if main is not None:
            nodes[path] = main
        shown = main if main is not None else _main_node(calls[:1], kind)
        reason = _reason(path, layer, kind, calls, shown, facts, owners)
        position = facts.order[calls[0].nodes[0]] if calls else float("inf")
        found.append((position, _describe(path, layer, kind, len(calls), shown, reason, batch)))

    found.sort(key=lambda item: item[0])
    layers: dict[str, LayerInfo] = {}
    for order, (position, info) in enumerate(found):
        executed = position != float("inf")
        layers[info.name] = replace(info, order=order if executed else -1)
    return layers, nodes


def _main_node(calls: list[Call], kind: str) -> Node | None:
    if not calls:
        return None
    targets = MAIN_OPERATORS.get(kind, frozenset())
    matches = [node for node in calls[0].nodes if node.target in targets]
    return matches[0] if len(matches) == 1 else None


def _reason(
    path: str,
    layer: nn.Module,
    kind: str,
    calls: list[Call],
    main: Node | None,
    facts: ProgramFacts,
    owners: dict[int, list[str]],
) -> str:
    """Why a layer is not eligible, in plain words; '' when it is."""
    actual = type(layer).__name__
    if kind not in LAYER_TYPES:
        return f"{kind} is not handled yet by post-training quantisation in this version"
    if actual != kind:
        if hasattr(layer, "parametrizations"):
            return f"its {_parametrized(layer)} is parametrised (computed from other tensors)"
        return f"a subclass of {kind} ({actual}) is left in float"
    weight = getattr(layer, "weight", None)
    readers = facts.readers.get(id(weight), []) if isinstance(weight, Tensor) else []
    if not calls:
        if readers:
            return "its weight is used functionally; the module itself is never called"
        return "it is never executed in the forward pass"
    if len(calls) > 1:
        return f"it is called {len(calls)} times"
    if kind in RNN_TYPES:
        return rnn_obstacle(path, layer, main, facts, owners)
    if kind != "AvgPool2d" and isinstance(weight, Tensor):
        others = [name for name in owners.get(id(weight), []) if name != f"{path}.weight"]
        if others:
            return f"its weight is shared with {', '.join(others)}"
        if id(weight) not in owners:
            return "its weight is computed from other tensors"
    mode = getattr(layer, "padding_mode", "zeros")
    if mode != "zeros":
        return f"padding_mode '{mode}' is not supported; only 'zeros' is"
    depth = getattr(layer, "dilation", (1,))[0] if kind == "Conv3d" else 1
    if depth != 1:
        return f"dilation {depth} along depth is not supported; only 1 is"
    if main is None:
        return "its computation is not the one operator expected of this layer type"
    if main not in facts.live:
        return "its result is not used"
    given = main.args[0]
    rank = len(shape_of(given)) if isinstance(given, Node) else 0
    expected = _DIMENSIONS.get(kind.replace("Transpose", ""), 2)
    if rank < expected:
        return f"its input is unbatched ({rank} dimensions instead of {expected})"
    if isinstance(given, Node) and given in facts.constant:
        return "its input is a constant"
    if kind == "AvgPool2d":
        if getattr(layer, "divisor_override", None) is not None:
            return "divisor_override has no counterpart in an AveragePool node"
        return ""
    if len(main.args) < 2 or facts.source.get(_node(main.args[1])) is not weight:
        return "its weight is computed from other tensors"
    outside = [facts.scope[node] for node in readers if node is not main]
    if outside:
        return f"its weight is read outside its own call (in '{outside[0]}')"
    return ""


def _describe(
    path: str, layer: nn.Module, kind: str, calls: int, main: Node | None, reason: str, batch: int
) -> LayerInfo:
    given = _node(main.args[0]) if main is not None else None
    shown = type(layer).__name__
    weight = getattr(layer, "weight", None) if kind != "AvgPool2d" else None
    weight_shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
    input_shape, output_shape = shape_of(given), shape_of(main)
    channels_in: object = input_shape[1] if len(input_shape) > 1 else 0
    channels_out: object = output_shape[1] if len(output_shape) > 1 else 0
    if kind == "Linear":
        channels_in, channels_out = layer.in_features, layer.out_features
    elif kind.startswith("Conv"):
        channels_in, channels_out = layer.in_channels, layer.out_channels
    groups = layer.groups if kind.startswith("Conv") else 1
    has_bias = isinstance(getattr(layer, "bias", None), Tensor)
    multiplied = weight_shape
    if isinstance(layer, nn.LSTM | nn.GRU):
        weight_shape = joined_shape(layer)
        # Of a layer with several levels or directions, too: every weight serves every step once.
        multiplied = (sum(p.numel() for p in layer.parameters() if p.dim() > 1),)
        channels_in, channels_out, has_bias = layer.input_size, layer.hidden_size, layer.bias
    return LayerInfo(
        name=path,
        type=shown,
        eligible=not reason,
        reason=reason,
        order=0,
        calls=calls,
        input_shape=input_shape,
        output_shape=output_shape,
        weight_shape=weight_shape,
        groups=_int(groups),
        in_channels=_int(channels_in),
        out_channels=_int(channels_out),
        has_bias=has_bias,
        parameters=sum(p.numel() for p in layer.parameters(recurse=False)),
        macs=multiply_accumulates(
            kind, example_shape(given), example_shape(main), multiplied, batch
        )
        * max(calls, 1),
    )


def _node(argument: object) -> Node:
    if not isinstance(argument, Node):
        raise TypeError(f"expected a graph node, got {argument!r}")
    return argument


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _parametrized(layer: nn.Module) -> str:
    lists = getattr(layer, "parametrizations", None)
    return " and ".join(lists.keys()) if isinstance(lists, nn.ModuleDict) else "weight"
