"""Which layers of a model quantisation-aware training handles, and how it treats each.

Source: specification chapter 30 sections 1, 4.1, 4.3 and 4.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from workbench.engine.files.layer_rules import RECURRENT
from workbench.engine.files.retrain_config import RetrainConfig
from workbench.engine.files.retrain_rules import RETRAIN_TYPES
from workbench.engine.graph.capture import Captured
from workbench.engine.graph.folding import FoldPlan
from workbench.engine.graph.layers import LayerInfo
from workbench.engine.graph.non_negative import non_negative_input
from workbench.engine.graph.sources import input_sources


@dataclass(frozen=True)
class Treatment:
    """How a layer is trained.

    ``fixed_min``: the lower bound of its input is 0. ``norm``: path of the batch norm that it
    absorbs, '' for none. ``owner``: the layer whose input quantiser it uses, its own name if none
    is shared. ``leads``: of the layers that share, it runs first.
    """

    fixed_min: bool
    norm: str
    owner: str
    leads: bool


def retrain_layers(captured: Captured) -> dict[str, LayerInfo]:
    """Every layer in ``named_modules()`` order; those that stay float carry the reason."""
    return {
        name: _judged(captured.layers[name])
        for name, _ in captured.module.named_modules()
        if name in captured.layers
    }


def _judged(info: LayerInfo) -> LayerInfo:
    reason = ""
    if info.type not in RETRAIN_TYPES:
        reason = f"{info.type} is not trained for quantisation"
    return replace(info, eligible=False, reason=reason) if info.eligible and reason else info


def plan_treatment(
    captured: Captured, config: RetrainConfig, folding: FoldPlan, *, compat: bool = False
) -> dict[str, Treatment]:
    """The treatment of every enabled layer, in ``named_modules()`` order."""
    enabled = [name for name, _ in captured.module.named_modules() if name in config.enabled()]
    norms = {pair.conv: pair.bn for pair in folding.pairs}
    groups = _groups(captured, config, enabled)
    owners = {name: group[0] for group in groups for name in group}
    first = {min(group, key=lambda n: captured.layers[n].order) for group in groups}
    plan = {}
    for name in enabled:
        fixed = config.layers[name].data.fixed_min
        if fixed is None:
            fixed = non_negative_input(captured, name, compat=compat)
        plan[name] = Treatment(fixed, norms.get(name, ""), owners[name], name in first)
    return plan


def _groups(captured: Captured, config: RetrainConfig, enabled: Iterable[str]) -> list[list[str]]:
    """Enabled layers that read one tensor with equal settings (section 4.5)."""
    sources = input_sources(captured)
    groups: dict[object, list[str]] = {}
    for name in enabled:
        # A recurrent layer is an operator of its own, with its quantisers inside.
        source = name if captured.layers[name].type in RECURRENT else sources[name]
        groups.setdefault((source, config.layers[name]), []).append(name)
    return list(groups.values())


def float_reasons(layers: Mapping[str, LayerInfo], enabled: Iterable[str]) -> dict[str, str]:
    """Why each layer that is not trained stays float."""
    trained = set(enabled)
    return {
        name: info.reason or "retrain_enable is false"
        for name, info in layers.items()
        if name not in trained
    }
