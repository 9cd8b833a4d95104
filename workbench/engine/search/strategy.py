"""Search strategies: which layers to leave in float next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class AutoCalibrationStrategyBase:
    """Base of strategies. Source: specification chapter 20 section 6.3."""

    def initialize(self, ranking: Mapping[str, float]) -> None:
        """``ranking``: layer name to sensitivity, in config order; smaller means more sensitive."""
        raise NotImplementedError

    def update_quant_config(self, metric_eval: tuple[bool, float]) -> dict[str, Any]:
        """Judge the configuration proposed last and give the next one.

        Returns ``{'stop_flag': bool, 'roll_back_config': {layer: quantised}}``. The first call
        carries the judgement of the all-quantised configuration.
        """
        raise NotImplementedError


class BinarySearchStrategy(AutoCalibrationStrategyBase):
    """Smallest number of most-sensitive layers left in float that passes, assuming monotonicity.

    Ties keep config order. At most ⌈log2 N⌉ + 1 proposals. Source: chapter 20 section 6.4.
    """

    def __init__(self) -> None:
        self._layers: list[str] = []
        self._left = 0
        self._right = 0
        self._cut: int | None = None
        self._accepted: int | None = None

    def initialize(self, ranking: Mapping[str, float]) -> None:
        self._layers = sorted(ranking, key=lambda name: ranking[name])
        self._left, self._right = 0, len(self._layers) - 1
        self._cut = self._accepted = None

    def update_quant_config(self, metric_eval: tuple[bool, float]) -> dict[str, Any]:
        satisfied = bool(metric_eval[0])
        judged = self._cut
        if judged is not None:
            if satisfied:
                self._accepted = judged
                self._right = judged - 1
            else:
                self._left = judged + 1
        if self._left > self._right:
            answer = judged if satisfied else self._accepted
            return self._proposal(
                answer if answer is not None else len(self._layers) - 1, stop=True
            )
        self._cut = (self._left + self._right) // 2
        return self._proposal(self._cut, stop=False)

    def _proposal(self, cut: int, *, stop: bool) -> dict[str, Any]:
        config = {name: i > cut for i, name in enumerate(self._layers)}
        return {"stop_flag": stop, "roll_back_config": config}
