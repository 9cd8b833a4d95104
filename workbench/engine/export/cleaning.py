"""Passes that make an exported graph clean without changing what it computes or merging layers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from workbench.engine.export.constants import derived
from workbench.engine.export.edits import new_initializer

_FOLDED_INPUT_LIMIT = 8192
_FOLDED_OUTPUT_LIMIT = 512 * 512


def clean(model: ir.Model) -> None:
    """Fold constants, simplify reshapes, drop identities and dead nodes; BatchNorm stays apart."""
    fold_weight_transposes(model)
    constant_reshapes(model)
    common.RemoveUnusedNodesPass()(model)
    optimizer.fold_constants(
        model,
        onnx_shape_inference=False,
        input_size_limit=_FOLDED_INPUT_LIMIT,
        output_size_limit=_FOLDED_OUTPUT_LIMIT,
    )
    common.IdentityEliminationPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)


def fold_weight_transposes(model: ir.Model) -> None:
    """Transpose initialisers now: a MatMul's weight becomes a constant of shape (Cin, Cout)."""
    graph = model.graph
    done: dict[tuple[str, tuple[int, ...]], ir.Value] = {}
    for node in list(graph):
        if node.op_type != "Transpose" or node.domain:
            continue
        source, result = node.inputs[0], node.outputs[0]
        if source is None or not source.is_initializer() or source.const_value is None:
            continue
        rank = len(source.const_value.shape)
        given = node.attributes.get("perm")
        order = tuple(given.as_ints()) if given is not None else tuple(reversed(range(rank)))
        name = str(source.name)
        if (name, order) not in done:
            stored = source.const_value
            shape = [int(str(stored.shape[axis])) for axis in order]
            alone = all(_transposes(user, order) for user, _ in source.uses())
            if alone:
                del graph.initializers[name]
                source.name = f"{name}#before"
            new_name = name if alone else f"{name}#transposed"
            turn = partial(np.transpose, axes=order)
            value = new_initializer(graph, derived(stored, turn, shape, stored.dtype), new_name)
            done[name, order] = value
            done[str(source.name), order] = value
        result.replace_all_uses_with(done[name, order], replace_graph_outputs=False)
        if not result.uses() and not result.is_graph_output():
            graph.remove(node, safe=True)


def constant_reshapes(model: ir.Model) -> None:
    """Give a Reshape with one dynamic dimension a constant target with -1 in its place."""
    for node in list(model.graph):
        if node.op_type != "Reshape" or node.domain:
            continue
        shape, target = node.outputs[0].shape, node.inputs[1]
        if shape is None or target is None or target.const_value is not None:
            continue
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        if sizes.count(-1) > 1 or 0 in sizes:
            continue
        constant = ir.node("Constant", [], {"value": ir.tensor(np.array(sizes, np.int64))})
        constant.outputs[0].name = f"{node.outputs[0].name}_shape"
        model.graph.insert_before(node, constant)
        node.replace_input_with(1, constant.outputs[0])


def rename_symbol(model: ir.Model, old: str, new: str) -> None:
    """Rename a symbolic dimension in the shapes of every value, inside expressions too."""
    pattern = re.compile(rf"\b{re.escape(old)}\b")
    for value in _values(model):
        if value.shape is None or value.shape.is_static():
            continue
        value.shape = ir.Shape(
            [
                size if isinstance(size, int) else _renamed(size, pattern, new)
                for size in value.shape
            ]
        )


def _renamed(size: ir.SymbolicDim, pattern: re.Pattern[str], new: str) -> ir.SymbolicDim:
    text = size.value
    return ir.SymbolicDim(pattern.sub(new, str(text)) if text is not None else None)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        yield from node.outputs


def _transposes(node: ir.Node, order: tuple[int, ...]) -> bool:
    given = node.attributes.get("perm")
    default = tuple(reversed(range(len(order))))
    return node.op_type == "Transpose" and (
        (tuple(given.as_ints()) if given is not None else default) == order
    )
