"""Reading an exported program: which module call a node belongs to, and whose parameter it reads.

A call is identified by (module path, call index), never by a synthesised name (chapter 10, D2).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

MARK = "workbench.mark"
"""Class name of the scope entries that ``mark`` adds; no module of a user has it."""

LAYER_MARK = "workbench-layer:"
TAP_MARK = "workbench-tap:"


@dataclass
class Call:
    """One execution of a module: its nodes in order."""

    path: str
    nodes: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class ProgramFacts:
    """What the graph of a program says about modules and parameters.

    ``calls``: canonical module path -> its calls in order. ``scope``: node -> canonical path of the
    innermost module that runs it. ``readers``: parameter or buffer (by id of the module's tensor)
    -> nodes that read it. ``source``: placeholder node -> that tensor. ``constant``: nodes that do
    not depend on an input. ``live``: nodes whose result matters.
    """

    calls: dict[str, list[Call]]
    scope: dict[Node, str]
    readers: dict[int, list[Node]]
    source: dict[Node, Tensor]
    constant: frozenset[Node]
    live: frozenset[Node]
    order: dict[Node, int]


def canonical_paths(module: nn.Module) -> dict[str, str]:
    """Every path of every module -> the path ``named_modules`` gives that module."""
    first = {id(child): path for path, child in module.named_modules()}
    return {p: first[id(child)] for p, child in module.named_modules(remove_duplicate=False)}


def read_program(module: nn.Module, program: ExportedProgram) -> ProgramFacts:
    """Collect the facts of a freshly exported program in one pass over its nodes."""
    paths = canonical_paths(module)
    tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    tensors.update(module.named_buffers(remove_duplicate=False))
    targets = {
        spec.arg.name: spec.target
        for spec in program.graph_signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target is not None
    }
    inputs = set(program.graph_signature.user_inputs)

    calls: dict[str, dict[str, Call]] = {}
    scope: dict[Node, str] = {}
    readers: dict[int, list[Node]] = {}
    source: dict[Node, Tensor] = {}
    constant: set[Node] = set()
    order: dict[Node, int] = {}
    for position, node in enumerate(program.graph.nodes):
        order[node] = position
        if node.op == "placeholder":
            if node.name not in inputs:
                constant.add(node)
            tensor = tensors.get(targets.get(node.name, ""))
            if tensor is not None:
                source[node] = tensor
                readers.setdefault(id(tensor), []).extend(node.users)
            continue
        if node.op == "get_attr" or (node.op == "call_function" and _no_input(node, constant)):
            constant.add(node)
        innermost = ""
        for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
            innermost = paths.get(path, path)
            by_key = calls.setdefault(innermost, {})
            by_key.setdefault(key, Call(innermost)).nodes.append(node)
        scope[node] = innermost
    return ProgramFacts(
        calls={path: list(by_key.values()) for path, by_key in calls.items()},
        scope=scope,
        readers=readers,
        source=source,
        constant=frozenset(constant),
        live=frozenset(_live(program.graph.nodes)),
        order=order,
    )


def mark(node: Node, label: str) -> None:
    """Attach a label that survives decomposition and reaches the ONNX node's scope names."""
    stack = dict(node.meta.get("nn_module_stack") or {})
    stack[f"{MARK}:{label}"] = (label, MARK)
    node.meta["nn_module_stack"] = stack


def mutates(node: Node) -> bool:
    """Whether a node's operator writes to one of its arguments."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _no_input(node: Node, constant: set[Node]) -> bool:
    return all(argument in constant for argument in node.all_input_nodes)


def _live(nodes: Iterable[Node]) -> set[Node]:
    live: set[Node] = set()
    for node in reversed(list(nodes)):
        if (
            node.op in ("output", "placeholder")
            or mutates(node)
            or any(user in live for user in node.users)
        ):
            live.add(node)
    return live
