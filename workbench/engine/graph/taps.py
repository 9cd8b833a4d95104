"""Tensors we may want the range of that are no layer's input: sums of two tensors, and concats."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from workbench.engine.graph.program import ProgramFacts

_ADD = {torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor}
_CAT = {torch.ops.aten.cat.default}


@dataclass(frozen=True)
class Tap:
    """The output of one ``add`` or ``cat`` of a model's own code.

    ``scope`` is the path of the innermost module that runs it. ``ordinal`` counts the scope's calls
    of that operator in execution order, over all calls of the scope: for ``add`` every sum of two
    tensors (``+``, ``+=``, ``torch.add``; not of a tensor and a number), for ``cat`` every
    concatenation. Sums with a constant or of different ranks are counted but are no taps.
    """

    key: str
    op: str
    scope: str
    ordinal: int


def find_taps(facts: ProgramFacts) -> dict[Node, Tap]:
    """Every tap of a program, by its node, in execution order."""
    counts: dict[tuple[str, str], int] = {}
    taps: dict[Node, Tap] = {}
    for node in facts.order:
        if node.op != "call_function":
            continue
        if node.target in _ADD and all(_is_tensor(operand) for operand in node.args[:2]):
            op = "add"
        elif node.target in _CAT:
            op = "cat"
        else:
            continue
        scope = facts.scope[node]
        ordinal = counts.get((scope, op), 0)
        counts[scope, op] = ordinal + 1
        if _wanted(node, op, facts):
            taps[node] = Tap(f"{scope}#{op}{ordinal}", op, scope, ordinal)
    return taps


def _wanted(node: Node, op: str, facts: ProgramFacts) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.is_floating_point() or node not in facts.live:
        return False
    operands = node.all_input_nodes
    if op == "cat":
        return any(operand not in facts.constant for operand in operands)
    left, right = node.args[0], node.args[1]
    if not isinstance(left, Node) or not isinstance(right, Node):
        return False
    if left in facts.constant or right in facts.constant:
        return False
    return bool(left.meta["val"].dim() == right.meta["val"].dim())


def _is_tensor(operand: object) -> bool:
    return isinstance(operand, Node) and isinstance(operand.meta.get("val"), Tensor)
