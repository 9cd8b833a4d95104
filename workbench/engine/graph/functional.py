"""A functional form of an exported program that the ONNX exporter takes without decomposing it.

Decomposition runs the whole model through AOT autograd several times and is four fifths of an
export's time. Most networks do not need it: only in-place operators and idle dropouts stand in the
way, and those are rewritten here. Whatever else needs decomposing takes torch's own way.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from workbench.engine.graph.program import mutates

_aten = torch.ops.aten
_DROPOUTS = frozenset(
    {_aten.dropout.default, _aten.dropout_.default, _aten.feature_dropout.default}
)


class DirectProgram(ExportedProgram):
    """An exported program that skips decomposition when nothing in it needs it."""

    def run_decompositions(
        self,
        decomp_table: dict[Any, Any] | None = None,
        decompose_custom_triton_ops: bool = False,
    ) -> ExportedProgram:
        table = {} if decomp_table is None else decomp_table
        settled = decomp_table is not None and all(
            node.target not in table and not mutates(node) and _plain(node)
            for node in self.graph.nodes
            if node.op == "call_function"
        )
        if settled and all(node.op != "get_attr" for node in self.graph.nodes):
            return self
        decomposed: ExportedProgram = super().run_decompositions(
            decomp_table, decompose_custom_triton_ops
        )
        return decomposed


def direct_program(program: ExportedProgram) -> DirectProgram:
    """Copy a program's graph without idle dropouts and, where aliasing allows, in-place operators.

    Tensors and metadata are shared with ``program``, which stays as it is.
    """
    graph = Graph()
    mapping: dict[Node, Node] = {}
    outputs = graph.graph_copy(program.graph, mapping)
    output = graph.output(outputs)
    output.meta = dict(next(iter(reversed(program.graph.nodes))).meta)
    for old, new in mapping.items():
        # Copying turns names like "input" into "input_1", which the signature does not know.
        new.name = old.name
    renamed: dict[str, str] = {}
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in list(order):
        replacement = _idle(node) or _out_of_place(graph, node, order)
        if replacement is not None:
            renamed[node.name] = replacement.name
            graph.erase_node(node)
    signature = program.graph_signature
    for spec in signature.output_specs:
        name = getattr(spec.arg, "name", None)
        while name in renamed:
            name = renamed[name]
        if name is not None and name != spec.arg.name:
            signature = _rename_output(signature, spec.arg.name, name)
    return DirectProgram(
        root=program.graph_module,
        graph=graph,
        graph_signature=signature,
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=program.verifiers,
    )


def _rename_output(signature: Any, old: str, new: str) -> Any:
    signature = copy.deepcopy(signature)
    for spec in signature.output_specs:
        if getattr(spec.arg, "name", None) == old:
            spec.arg.name = new
    return signature


def _plain(node: Node) -> bool:
    """Whether a node is an operator or Python arithmetic on sizes (no higher-order operator)."""
    return not isinstance(node.target, torch._ops.HigherOrderOperator)


def _idle(node: Node) -> Node | None:
    """The input of a dropout that does nothing, after its users were moved to that input."""
    if node.op != "call_function" or node.target not in _DROPOUTS or node.args[2]:
        return None
    source = node.args[0]
    if not isinstance(source, Node):
        return None
    node.replace_all_uses_with(source)
    return source


def _out_of_place(graph: Graph, node: Node, order: dict[Node, int]) -> Node | None:
    """The functional twin of an in-place operator, or None where another alias could see the write.

    The written tensor must be the fresh result of an operator, and none of its earlier users may
    hand out a view of it.
    """
    if node.op != "call_function" or not mutates(node):
        return None
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return None
    name = target._schema.name.split("::")[-1]
    packet = getattr(_aten, name[:-1], None) if name.endswith("_") else None
    overload = getattr(packet, target._overloadname, None) if packet is not None else None
    written = node.args[0] if node.args else None
    if overload is None or not isinstance(written, Node) or not _fresh(written):
        return None
    earlier = [user for user in written.users if order[user] < order[node]]
    if any(not _keeps_to_itself(user) for user in earlier):
        return None
    with graph.inserting_before(node):
        twin = graph.call_function(overload, node.args, node.kwargs)
    twin.meta = dict(node.meta)
    order[twin] = order[node]
    node.replace_all_uses_with(twin)
    written.replace_all_uses_with(twin, delete_user_cb=lambda user: order[user] > order[node])
    return twin


def _fresh(node: Node) -> bool:
    return node.op == "call_function" and _keeps_to_itself(node)


def _keeps_to_itself(node: Node) -> bool:
    """Whether an operator's results share no memory with its arguments."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    # Composite operators (reshape, contiguous, flatten) may return a view without saying so.
    if node.target in _MAY_ALIAS:
        return False
    schema = node.target._schema
    return all(result.alias_info is None for result in schema.returns)


_MAY_ALIAS = frozenset(
    {
        _aten.reshape.default,
        _aten.contiguous.default,
        _aten.flatten.using_ints,
        _aten.to.dtype,
        _aten.to.device,
        _aten.to.dtype_layout,
        _aten.type_as.default,
        _aten.dropout.default,
    }
)
