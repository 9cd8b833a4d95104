"""Which strategy and which sensitivity an argument means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workbench.engine.errors import WrongState
from workbench.engine.search.driving import PlugInStrategy, ReferenceStrategy
from workbench.engine.search.judging import ProposingStrategy, SearchStrategy
from workbench.engine.search.linear import BinarySearchVerifiedStrategy, GreedyStrategy
from workbench.engine.search.pareto import TRIALS, ParetoStrategy
from workbench.engine.search.recover import RecoverStrategy
from workbench.engine.search.sensitivity import BY_NAME, SensitivityBase
from workbench.engine.search.strategy import AutoCalibrationStrategyBase, BinarySearchStrategy

Strategy = str | AutoCalibrationStrategyBase | SearchStrategy | ProposingStrategy | ParetoStrategy

STRATEGIES: dict[str, Callable[[], SearchStrategy]] = {
    "BinarySearch": lambda: ReferenceStrategy(BinarySearchStrategy()),
    "BinarySearchVerified": BinarySearchVerifiedStrategy,
    "Greedy": GreedyStrategy,
    "Recover": RecoverStrategy,
}


PARETO = "Pareto"


def resolve_strategy(
    strategy: Any, *, objective: str = "size", pareto_trials: int = TRIALS
) -> SearchStrategy | ParetoStrategy:
    """``objective`` and ``pareto_trials`` are those of strategy 'Pareto'.

    Errors: ``RuntimeError`` for anything but a name and an instance; those of ``ParetoStrategy``.
    """
    if isinstance(strategy, ParetoStrategy):
        return strategy
    if isinstance(strategy, str) and strategy == PARETO:
        return ParetoStrategy(objective, pareto_trials)
    if isinstance(strategy, str) and strategy in STRATEGIES:
        return STRATEGIES[strategy]()
    if isinstance(strategy, AutoCalibrationStrategyBase):
        return ReferenceStrategy(strategy)
    if not isinstance(strategy, type):
        if isinstance(strategy, SearchStrategy):
            return strategy
        if isinstance(strategy, ProposingStrategy):
            return PlugInStrategy(strategy)
    raise WrongState(
        f"strategy is {strategy!r}; allowed: {', '.join(map(repr, (*STRATEGIES, PARETO)))}, an "
        "instance of AutoCalibrationStrategyBase or ParetoStrategy, or an object with search() or "
        "with propose() and observe()",
        where="accuracy_based_auto_calibration()",
    )


def resolve_sensitivity(sensitivity: Any) -> SensitivityBase:
    """Errors: ``RuntimeError`` for anything but a name of ``BY_NAME`` and an instance."""
    if isinstance(sensitivity, SensitivityBase):
        return sensitivity
    if isinstance(sensitivity, str) and sensitivity in BY_NAME:
        return BY_NAME[sensitivity]()
    raise WrongState(
        f"sensitivity must be one of {sorted(BY_NAME)} or a SensitivityBase, it is {sensitivity!r}",
        where="accuracy_based_auto_calibration()",
    )
