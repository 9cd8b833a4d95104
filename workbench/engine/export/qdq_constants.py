"""Weights and biases of the QDQ file: integers behind a DequantizeLinear.

Source: index decisions 8 and 12. The integers are those of the deploy file.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from workbench.engine.export.arithmetic import FloatArray, bias_codes, dequant_scale, weight_codes
from workbench.engine.export.constants import constant_array, constant_tensor, derived
from workbench.engine.export.edits import (
    Content,
    Names,
    insert_on_input,
    make_node,
    new_initializer,
)
from workbench.engine.export.plan import QuantizedNode, weight_shape


def keeps_float_weight(layer: QuantizedNode) -> bool:
    """A grouped transposed convolution with channel-wise scales.

    Its scales lie along two axes at once, which DequantizeLinear cannot say, so the weight stays in
    float (rounded to its grid already); no runtime has an integer kernel for it anyway.
    """
    return layer.kind == "ConvTranspose" and layer.groups > 1 and layer.scale_w.size > 1


def quantize_weight(
    graph: ir.Graph,
    names: Names,
    layer: QuantizedNode,
    output_scale: FloatArray | None,
    *,
    unsigned: bool,
) -> None:
    """8-bit codes behind a DequantizeLinear, per channel where the record is.

    ``output_scale`` multiplies the output channels: the codes stay, their scales take it.
    """
    if layer.weight is None or keeps_float_weight(layer):
        return
    axis = layer.output_axis
    stored = constant_tensor(layer.weight)
    assert stored is not None
    node, index = layer.node, 1
    if layer.stored_transposed:
        transpose = layer.node.inputs[1].producer() if layer.node.inputs[1] is not None else None
        assert transpose is not None
        node, index = transpose, 0
    middle = 128 if unsigned else 0
    dtype = np.uint8 if unsigned else np.int8

    def codes(weight: NDArray[np.generic]) -> NDArray[np.generic]:
        made = weight_codes(weight, layer.scale_w, layer.wts_bits, axis=axis, groups=layer.groups)
        made += np.float32(middle)
        return made.astype(dtype)

    kind = ir.DataType.UINT8 if unsigned else ir.DataType.INT8
    content = derived(stored, codes, weight_shape(layer), kind)
    scale: FloatArray = layer.scale_w if output_scale is None else layer.scale_w * output_scale
    per_channel = scale.size > 1
    scale = scale if per_channel else scale.reshape(())
    zero = np.full(scale.shape, middle, dtype)
    _dequantized_constant(graph, names, node, index, content, scale, zero, axis, per_channel)


def quantize_bias(
    graph: ir.Graph,
    names: Names,
    layer: QuantizedNode,
    scale_d: float,
    output_scale: FloatArray | None,
) -> None:
    """int32 codes with scale ``scale_d * scale_w``; the bias of a MatMul stays a float Add."""
    if layer.bias is None or layer.bias_add is not None or layer.act_bits != 8:
        return
    if layer.kind == "ConvTranspose":
        return
    stored = constant_array(layer.bias)
    assert stored is not None
    codes = bias_codes(stored, scale_d, layer.scale_w, layer=layer.name).reshape(-1)
    scale = dequant_scale(scale_d, layer.scale_w)
    if output_scale is not None:
        scale = scale * output_scale
    per_channel = scale.size > 1
    if not per_channel:
        scale = scale.reshape(())
    zero = np.zeros(scale.shape, np.int32)
    _dequantized_constant(graph, names, layer.node, 2, codes, scale, zero, 0, per_channel)


def _dequantized_constant(
    graph: ir.Graph,
    names: Names,
    node: ir.Node,
    index: int,
    codes: Content,
    scale: NDArray[np.generic],
    zero: NDArray[np.generic],
    axis: int,
    per_channel: bool,
) -> None:
    old = node.inputs[index]
    assert old is not None
    base = str(old.name)
    stored = new_initializer(graph, codes, names.value(f"{base}_quantized"))
    step = new_initializer(graph, scale, names.value(f"{base}_scale"))
    origin = new_initializer(graph, zero, names.value(f"{base}_zero_point"))
    attributes: Mapping[str, ir.Attr] = {"axis": ir.AttrInt64("axis", axis)} if per_channel else {}
    dequantize = make_node(
        "DequantizeLinear",
        [stored, step, origin],
        names.node(f"{base}_DequantizeLinear"),
        names.value(f"{base}_dequantized"),
        attributes,
        like=old,
    )
    insert_on_input(graph, node, index, [dequantize])
    if not old.uses() and not old.is_graph_output():
        producer = old.producer()
        if producer is not None:
            graph.remove(producer, safe=True)
        elif old.name is not None and old.name in graph.initializers:
            graph.initializers.pop(old.name)
