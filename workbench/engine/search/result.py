"""What a search gives, finished or stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.engine.errors import Cancelled
from workbench.engine.files.config import QuantConfig
from workbench.engine.files.record import Record
from workbench.engine.files.sidecar import Sidecar
from workbench.engine.flows.calibration import Calibration
from workbench.engine.search.judging import ParetoPoint, Trial


@dataclass(frozen=True)
class SearchResult:
    """``calibration`` is the accepted configuration's own; None when every layer stays float.

    ``equivalents``: full evaluations spent, the original's not counted. ``pareto``: with strategy
    'Pareto', every configuration that was looked at, cheapest first, and ``objective``
    says what they cost.
    """

    config: QuantConfig
    calibration: Calibration | None
    trials: tuple[Trial, ...]
    ranking: Mapping[str, float]
    original_metric: Any
    global_metric: Any
    final_metric: Any
    equivalents: float = 0.0
    pareto: tuple[ParetoPoint, ...] = ()
    objective: str = ""

    @property
    def satisfied(self) -> bool:
        return self.calibration is not None

    @property
    def record(self) -> Record | None:
        return self.calibration.finalize() if self.calibration else None

    @property
    def sidecar(self) -> Sidecar | None:
        return self.calibration.sidecar() if self.calibration else None


class SearchCancelled(Cancelled):
    """``best``: the passing configuration with the fewest float layers so far, and what was tried.

    ``config`` is None while nothing has passed.
    """

    def __init__(
        self,
        message: str,
        config: QuantConfig | None,
        trials: tuple[Trial, ...],
        ranking: Mapping[str, float],
        pareto: tuple[ParetoPoint, ...] = (),
        objective: str = "",
    ) -> None:
        super().__init__(message)
        self.pareto, self.objective = pareto, objective
        self.config, self.trials, self.ranking = config, trials, ranking
