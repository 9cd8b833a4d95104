"""Fold BatchNorm into the convolution before it (chapter 10 section 7)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node

from workbench.engine.graph.capture import Captured
from workbench.engine.graph.eligibility import MAIN_OPERATORS

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONV_OPERATORS = frozenset().union(
    *(MAIN_OPERATORS[kind] for kind in ("Conv1d", "Conv2d", "Conv3d"))
)
_BATCH_NORM = torch.ops.aten.batch_norm.default


@dataclass(frozen=True)
class FoldedPair:
    """One convolution with the BatchNorm that goes into it.

    ``weight`` (the convolution's shape) and ``bias`` (Cout) are the folded values.
    """

    conv: str
    bn: str
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class FoldPlan:
    """What is folded, and for every other BatchNorm why it is kept."""

    pairs: tuple[FoldedPair, ...]
    kept: dict[str, str]


def plan_folding(captured: Captured, skip: Collection[str] = (), *, sync: bool = False) -> FoldPlan:
    """Find every Conv + BatchNorm pair that can be folded without changing the model.

    ``skip`` lists convolutions to leave alone (``skip_fusion_layers``). A convolution or BatchNorm
    that runs more than once, shares its weight or has hooks is kept, with the reason (D1). With
    ``sync`` a SyncBatchNorm is taken for what it is in eval mode: an ordinary one.
    """
    norms = (*_NORMS, nn.SyncBatchNorm) if sync else _NORMS
    modules = dict(captured.module.named_modules())
    owners: dict[int, int] = {}
    for module in modules.values():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    pairs: list[FoldedPair] = []
    kept: dict[str, str] = {}
    for path, module in modules.items():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            found: FoldedPair | str = f"{type(module).__name__} is not folded"
            if type(module) in norms:
                found = _pair(captured, modules, owners, path, module, skip)
            if isinstance(found, str):
                kept[path] = found
            else:
                pairs.append(found)
    return FoldPlan(tuple(pairs), kept)


def apply_folding(module: nn.Module, plan: FoldPlan) -> None:
    """Fold the pairs of ``plan`` in an engine copy, in place.

    The convolution gets new parameters (shared ones are never written) and the BatchNorm becomes an
    ``Identity`` under the same name.
    """
    children = dict(module.named_modules(remove_duplicate=False))
    replacements: dict[int, nn.Module] = {}
    for pair in plan.pairs:
        conv = children[pair.conv]
        trains = any(p.requires_grad for p in conv.parameters(recurse=False))
        conv.weight = nn.Parameter(pair.weight.clone(), requires_grad=trains)
        conv.bias = nn.Parameter(pair.bias.clone(), requires_grad=trains)
        identity = nn.Identity()
        identity.train(children[pair.bn].training)
        replacements[id(children[pair.bn])] = identity
    for path, child in children.items():
        if id(child) in replacements:
            parent, _, name = path.rpartition(".")
            setattr(children[parent], name, replacements[id(child)])


def _pair(
    captured: Captured,
    modules: dict[str, nn.Module],
    owners: dict[int, int],
    path: str,
    norm: nn.modules.batchnorm._BatchNorm,
    skip: Collection[str],
) -> FoldedPair | str:
    facts = captured.facts
    if not norm.affine:
        return "it has no scale and shift (affine=False)"
    if norm.running_mean is None or norm.running_var is None:
        return "it uses the statistics of each batch (track_running_stats=False)"
    calls = facts.calls.get(path, [])
    if not calls:
        return "it is never executed in the forward pass"
    if len(calls) > 1:
        return f"it is called {len(calls)} times"
    if path in captured.training_paths:
        return "it is in training mode in the model; call model.eval() to fold it"
    node = next((n for n in calls[0].nodes if n.target is _BATCH_NORM), None)
    if node is None or len(calls[0].nodes) != 1:
        return "its computation is not the one operator expected of a BatchNorm"
    if node.args[5]:
        return "it runs in training mode"
    expected = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    if any(_source(captured, a) is not t for a, t in zip(node.args[1:5], expected, strict=True)):
        return "its parameters are computed from other tensors"
    if any(
        reader is not node for p in norm.parameters() for reader in facts.readers.get(id(p), [])
    ):
        return "its parameters are shared or read outside its own call"
    if _hooked(norm):
        return "it has hooks that folding would lose"

    before = node.args[0]
    if not isinstance(before, Node) or before.target not in _CONV_OPERATORS:
        return "its input is not a convolution's output"
    name = facts.scope[before]
    conv = modules.get(name)
    if not isinstance(conv, _CONVOLUTIONS):
        return "its input is not the output of a convolution module"
    if len(facts.calls[name]) > 1:
        return f"{name} is called {len(facts.calls[name])} times"
    convolutions = [n for n in facts.calls[name][0].nodes if n.target in _CONV_OPERATORS]
    if convolutions != [before]:
        return f"{name} runs more than one convolution"
    if name in skip:
        return f"{name} is listed in skip_fusion_layers"
    if conv.padding_mode != "zeros":
        return f"{name} has padding_mode '{conv.padding_mode}'"
    if any(owners.get(id(p), 0) > 1 for p in conv.parameters(recurse=False)):
        return f"{name} shares its weight or bias with another module"
    bias = before.args[2] if len(before.args) > 2 else None
    if _source(captured, before.args[1]) is not conv.weight or (
        conv.bias is not None and _source(captured, bias) is not conv.bias
    ):
        return f"the weight of {name} is computed from other tensors"
    if any(r is not before for p in conv.parameters() for r in facts.readers.get(id(p), [])):
        return f"the weight of {name} is read outside its own call"
    if _hooked(conv):
        return f"{name} has hooks that see its output before the BatchNorm"
    if set(before.users) != {node}:
        return f"the output of {name} is used by something else as well"
    return _fold(name, path, conv, norm)


def _fold(
    name: str, path: str, conv: nn.Module, norm: nn.modules.batchnorm._BatchNorm
) -> FoldedPair | str:
    weight, bias = conv.weight, conv.bias
    mean, variance = norm.running_mean, norm.running_var
    if not isinstance(weight, Tensor) or mean is None or variance is None:
        raise TypeError(f"{name} and {path} hold no tensors")
    with torch.no_grad():
        factor = norm.weight.double() / torch.sqrt(variance.double() + norm.eps)
        start = torch.zeros_like(mean, dtype=torch.float64)
        if isinstance(bias, Tensor):
            start = bias.double()
        folded = weight.double() * factor.reshape(-1, *[1] * (weight.dim() - 1))
        shift = (start - mean.double()) * factor + norm.bias.double()
        pair = FoldedPair(name, path, folded.to(weight.dtype), shift.to(weight.dtype))
    if not bool(torch.isfinite(pair.weight).all() and torch.isfinite(pair.bias).all()):
        return f"folding it into {name} gives inf or NaN"
    return pair


def _source(captured: Captured, argument: object) -> Tensor | None:
    return captured.facts.source.get(argument) if isinstance(argument, Node) else None


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
