"""The float network of every flow, batch norms folded as configured (chapter 10 section 7)."""

from __future__ import annotations

from torch import nn

from workbench.engine.files.config import QuantConfig
from workbench.engine.graph.capture import Captured, copy_model
from workbench.engine.graph.folding import FoldPlan, apply_folding, plan_folding


def fold_plan(captured: Captured, config: QuantConfig) -> FoldPlan:
    """Which batch norms go into which convolutions: none without ``do_fusion``."""
    if not config.do_fusion:
        return FoldPlan((), {})
    return plan_folding(captured, config.skip_fusion_layers)


def folded_copy(captured: Captured, plan: FoldPlan) -> nn.Module:
    """A copy of the captured float model with ``plan`` applied; the parameters are shared."""
    copied = copy_model(captured.module)
    apply_folding(copied, plan)
    return copied
