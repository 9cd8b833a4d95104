"""DMQ in the QDQ file: the division moves into the convolution before it where it can.

A ``Mul`` between two integer kernels would force the first one to float: its output has channels of
very different size, which one grid cannot hold. ``Relu`` and ``MaxPool`` let a positive factor per
channel pass, so the factor becomes part of the convolution's weight scales: same codes, no ``Mul``.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from workbench.engine.export.arithmetic import FloatArray
from workbench.engine.export.plan import QuantizedNode

_LET_PASS = frozenset({"Relu", "MaxPool"})


def fold_balance(graph: ir.Graph, layers: list[QuantizedNode]) -> dict[str, FloatArray]:
    """Remove every balance ``Mul`` that another layer can take over.

    Returns, by name of the layer before, what its output channels are to be multiplied with.
    """
    by_node = {layer.node: layer for layer in layers}
    folded: dict[str, FloatArray] = {}
    for layer in layers:
        if not layer.record.tensor_balance_factor:
            continue
        product = layer.node.inputs[0]
        multiply = product.producer() if product is not None else None
        before = _layer_before(multiply, by_node) if multiply is not None else None
        if product is None or multiply is None or before is None:
            continue
        data = multiply.inputs[0]
        assert data is not None
        product.replace_all_uses_with(data)
        graph.remove(multiply, safe=True)
        factors = np.asarray(layer.record.tensor_balance_factor, np.float32)
        folded[before.name] = (1.0 / factors).astype(np.float32)
    return folded


def _layer_before(multiply: ir.Node, by_node: dict[ir.Node, QuantizedNode]) -> QuantizedNode | None:
    """The 8-bit convolution whose output reaches only ``multiply``, if nothing is in the way."""
    value = multiply.inputs[0]
    while value is not None and len(value.uses()) == 1 and not value.is_graph_output():
        node = value.producer()
        if node is None or len(node.outputs) != 1:
            return None
        found = by_node.get(node)
        if found is not None:
            return found if found.kind == "Conv" and found.act_bits == 8 else None
        if node.op_type not in _LET_PASS:
            return None
        value = node.inputs[0]
    return None
