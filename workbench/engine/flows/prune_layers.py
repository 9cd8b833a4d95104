"""Which layers a pruning configuration may name, and why not the others (section 2.3)."""

from __future__ import annotations

from torch import nn

from workbench.engine.files.prune_config import SELECTIVE_TYPES, PruneLayer, channel_types
from workbench.engine.graph.capture import Captured
from workbench.engine.graph.eligibility import family
from workbench.engine.graph.layers import LayerInfo

_DIMENSIONS = {"1d": 3, "2d": 4, "3d": 5}


def prune_layers(captured: Captured, *, compat: bool = False) -> dict[str, PruneLayer]:
    """Every layer of a captured model by name, in order of execution."""
    modules = dict(captured.module.named_modules())
    found = {}
    for name, info in captured.layers.items():
        kind = family(modules[name])
        general = _general_obstacle(kind, info)
        found[name] = PruneLayer(
            name=name,
            type=kind,
            channel=_channel_obstacle(info, kind, compat=compat),
            selective=general or _computed(modules[name]) or _type_obstacle(kind, SELECTIVE_TYPES),
            quant=info.eligible,
        )
    return found


def channel_obstacle(info: LayerInfo) -> str:
    """Why a layer's output channels cannot be removed, as far as the layer alone says it."""
    return _channel_obstacle(info, info.type, compat=False)


def _channel_obstacle(info: LayerInfo, kind: str, *, compat: bool) -> str:
    general = _general_obstacle(kind, info) or _depthwise(info, compat=compat)
    return general or _type_obstacle(kind, channel_types(compat=compat))


def _general_obstacle(kind: str, info: LayerInfo) -> str:
    if info.calls == 0:
        return "it is never executed in the forward pass"
    if info.calls > 1:
        return f"it is called {info.calls} times"
    rank = len(info.input_shape)
    wanted = _DIMENSIONS.get(kind[-2:], 2)
    if rank and rank < wanted:
        return f"its input is unbatched ({rank} dimensions instead of {wanted})"
    return ""


def _computed(module: nn.Module) -> str:
    computed = "weight" not in module._parameters
    return "its weight is computed (weight_norm, parametrize)" if computed else ""


def _depthwise(info: LayerInfo, *, compat: bool) -> str:
    if info.groups == info.in_channels and (info.groups > 1 or compat):
        return "it is a depthwise convolution, which follows its input"
    return ""


def _type_obstacle(kind: str, types: tuple[str, ...]) -> str:
    return "" if kind in types else f"{kind} cannot be pruned; {', '.join(types)} can"
