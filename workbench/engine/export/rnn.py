"""LSTM and GRU in the exported files.

The deploy file has one ``BasicLSTMInplaceFillWindowCache`` or ``BasicGRUInplaceFillWindowCache``
node in the layer's place; the fake-quant file keeps the node, with quantised and dequantised values
at its inputs. Source: chapter 10 sections 6.4, 12.4, 13.3 and 13.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from workbench.engine.export.arithmetic import (
    FloatArray,
    bias_codes,
    dequant_scale,
    pack_dequant_parameter,
    pack_int4,
    weight_codes,
)
from workbench.engine.export.constants import constant_array
from workbench.engine.export.edits import (
    Names,
    constant_node,
    insert_on_input,
    make_node,
    new_initializer,
    set_constant,
)
from workbench.engine.export.fake_quant import expand_quant
from workbench.engine.export.plan import QuantizedNode
from workbench.engine.export.rnn_rules import QUANT_DTYPES, B, C, H, R, W, weight_rows
from workbench.engine.numerics.integer import reciprocal

DEPLOY_TYPES: Mapping[str, str] = {
    "LSTM": "BasicLSTMInplaceFillWindowCache",
    "GRU": "BasicGRUInplaceFillWindowCache",
}


@dataclass(frozen=True)
class Half:
    """One half of a layer: the inputs with W, or the hidden states with R.

    ``codes``: ``(1, gates*H, columns)`` integers; ``bias``: int32 codes, None without a bias.
    ``deq`` dequantises an accumulator: one value, or one a row.
    """

    scale: float
    offset: int
    codes: FloatArray
    bias: NDArray[np.int32] | None
    deq: FloatArray

    @property
    def weight(self) -> FloatArray:
        """The weight's real values, such that inputs times it are what ``deq`` gives."""
        factor = (self.deq / np.float32(self.scale)).astype(np.float32)
        return np.asarray(self.codes * factor.reshape(1, -1, 1), np.float32)

    @property
    def real_bias(self) -> FloatArray | None:
        return None if self.bias is None else np.asarray(self.bias * self.deq, np.float32)


def expand_recurrent(graph: ir.Graph, layers: list[QuantizedNode]) -> None:
    """Fake-quant file: X and initial_h pass through codes, W, R and B are dequantised floats."""
    names = Names(graph)
    for layer in (layer for layer in layers if layer.recurrent):
        x, h = halves(layer)
        for index, half in ((0, x), (H, h)):
            _quantize_input(graph, names, layer, index, half)
        set_constant(graph, names, layer.node, W, x.weight)
        set_constant(graph, names, layer.node, R, h.weight)
        if x.real_bias is not None and h.real_bias is not None:
            bias = np.concatenate([x.real_bias, h.real_bias])[None]
            set_constant(graph, names, layer.node, B, bias)


def deploy_recurrent(graph: ir.Graph, layers: list[QuantizedNode]) -> None:
    """Deploy file: each LSTM and GRU becomes its accelerator's node, with integer weights."""
    names = Names(graph)
    for layer in (layer for layer in layers if layer.recurrent):
        _replace(graph, names, layer)


def halves(layer: QuantizedNode) -> tuple[Half, Half]:
    """Everything of the layer as integers: its input half and its hidden half.

    Raises ``RuntimeError`` when a bias does not fit in int32.
    """
    entry, rows = layer.record, weight_rows(layer.node)
    bias = constant_array(layer.node.inputs[B]) if len(layer.node.inputs) > B else None
    made = []
    for index, scale, offset, scale_w in (
        (W, entry.scale_d, entry.offset_d, entry.scale_w),
        (R, entry.scale_h, entry.offset_h, entry.scale_r),
    ):
        step = float(np.float32(scale or 0.0))
        scales = np.asarray(scale_w, np.float32)
        stored = constant_array(layer.node.inputs[index])
        assert stored is not None
        first = 0 if index == W else rows
        made.append(
            Half(
                scale=step,
                offset=int(offset or 0),
                codes=weight_codes(stored, scales, layer.wts_bits, axis=1),
                bias=None
                if bias is None
                else bias_codes(bias[0, first : first + rows], step, scales, layer=layer.name),
                deq=dequant_scale(step, scales, force_fp16=layer.force_fp16),
            )
        )
    return made[0], made[1]


def _quantize_input(
    graph: ir.Graph, names: Names, layer: QuantizedNode, index: int, half: Half
) -> None:
    """``<layer>.quant`` and ``<layer>.anti_quant`` (a Mul by the scale) before one input."""
    node, data = layer.node, layer.node.inputs[index]
    assert data is not None
    name = names.node(f"{layer.name}.quant")
    quant = make_node(
        "AscendQuant",
        [data],
        name,
        names.value(f"{name}.output0"),
        {
            "scale": ir.AttrFloat32("scale", reciprocal(half.scale)),
            "offset": ir.AttrFloat32("offset", float(half.offset)),
            "dst_type": ir.AttrString("dst_type", f"INT{layer.act_bits}"),
        },
        like=data,
    )
    quant.meta["scale_d"], quant.meta["float16"] = half.scale, False
    base = f"{names.node(f'{layer.name}.anti_quant')}.fake_antiquant"
    scale = constant_node(
        np.asarray(half.scale, np.float32),
        names.node(f"{base}.scale"),
        names.value(f"{base}.scale.output0"),
    )
    product = make_node(
        "Mul",
        [quant.outputs[0], scale.outputs[0]],
        names.node(f"{base}.mul"),
        names.value(f"{base}.mul.output0"),
        like=data,
    )
    insert_on_input(graph, node, index, [quant, scale, product])
    expand_quant(graph, names, quant)


def _replace(graph: ir.Graph, names: Names, layer: QuantizedNode) -> None:
    node, (x, h) = layer.node, halves(layer)
    for index, half in ((W, x), (R, h)):
        codes = half.codes.astype(np.int8)
        set_constant(
            graph, names, node, index, pack_int4(codes, 2) if layer.wts_bits == 4 else codes
        )
    if x.bias is not None and h.bias is not None:
        set_constant(graph, names, node, B, np.concatenate([x.bias, h.bias])[None])
    parameter = new_initializer(
        graph,
        pack_dequant_parameter(np.concatenate([x.deq, h.deq])),
        names.value(f"{layer.name}.dequant.param"),
    )
    given = [*node.inputs, *[None] * 8][:8]
    state = [given[H], given[C]] if layer.kind == "LSTM" else [given[H]]
    outputs = list(node.outputs)
    made = ir.Node(
        "",
        DEPLOY_TYPES[layer.kind],
        [given[0], given[W], given[R], *state, given[B], given[4], None, parameter],
        _deploy_attributes(layer, x, h),
        num_outputs=len(outputs),
        name=layer.name,
    )
    graph.insert_before(node, [made])
    for old, new in zip(outputs, made.outputs, strict=True):
        new.shape, new.type = old.shape, old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name, old.name = old.name, None
    graph.remove(node, safe=True)


def _deploy_attributes(layer: QuantizedNode, x: Half, h: Half) -> list[ir.Attr]:
    kind = layer.kind
    return [
        ir.AttrInt64("hidden_size", layer.node.attributes.get_int("hidden_size", 0)),
        ir.AttrFloat32s("activation_alpha", []),
        ir.AttrFloat32s("activation_beta", []),
        ir.AttrStrings("activations", []),
        ir.AttrFloat32("clip", -1.0),
        ir.AttrString("direction", "forward"),
        ir.AttrInt64(*(("input_forget", 0) if kind == "LSTM" else ("linear_before_reset", 1))),
        ir.AttrInt64("quant_sqrt_mode_x", 0),
        ir.AttrInt64("quant_sqrt_mode_h", 0),
        ir.AttrFloat32("quant_scale_x", reciprocal(x.scale)),
        ir.AttrFloat32("quant_offset_x", float(x.offset)),
        ir.AttrFloat32("quant_scale_h", reciprocal(h.scale)),
        ir.AttrFloat32("quant_offset_h", float(h.offset)),
        ir.AttrInt64("quant_dtype", QUANT_DTYPES[layer.act_bits]),
    ]
