"""What is said of a plan of pruning."""

from __future__ import annotations

from dataclasses import replace

import pruning_case

from workbench.studio.pruning_words import plan_advice


def slow(advice: tuple[str, ...]) -> bool:
    return any("slower on this machine" in text for text in advice)


def test_a_plan_that_makes_the_model_slower_is_called_so() -> None:
    state = pruning_case.pruning()
    plan = next(plan for plan in state.plans if plan.removed)
    whole = state.original.latency_ms
    quick, lame = replace(plan, latency_ms=whole / 2), replace(plan, latency_ms=whole * 3)

    def said(plan: object, **changes: object) -> bool:
        return slow(plan_advice(replace(state, plans=(plan,), uniform=(), **changes), plan))

    assert said(lame)
    assert not said(quick)
    assert not said(lame, aligned=True)
