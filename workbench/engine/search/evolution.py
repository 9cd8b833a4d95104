"""NSGA-II over the choices, by Optuna (Deb et al. 2002)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from workbench.engine.errors import WrongState
from workbench.engine.search.costs import Options
from workbench.engine.search.judging import Choice

_POPULATION = 12
_ATTEMPTS = 8
_HUGE = 1e30

Known = Callable[[Mapping[str, Choice]], tuple[float, float] | None]
"""Loss and cost of a configuration that was judged already, else None."""


def require_optuna() -> Any:
    """The module ``optuna``. Errors: ``RuntimeError`` saying how to install it."""
    try:
        import optuna
    except ImportError:
        raise WrongState(
            "strategy 'Pareto' needs Optuna, which is not installed",
            where="strategy",
            hint='pip install "compression-workbench[search]"',
        ) from None
    return optuna


Hold = Callable[[Mapping[str, Choice]], dict[str, Choice]]


class Evolution:
    """Proposals bred from everything that was judged; the same ones for the same ``seed``."""

    def __init__(self, options: Options, seed: int) -> None:
        optuna = require_optuna()
        self._names = {name: {_word(c): c for c in allowed} for name, allowed in options.items()}
        self._space = {
            name: optuna.distributions.CategoricalDistribution(tuple(words))
            for name, words in self._names.items()
        }
        logger = logging.getLogger("optuna")
        level = logger.level
        logger.setLevel(logging.WARNING)  # it announces every study on stderr
        try:
            self._study = optuna.create_study(
                directions=["minimize", "minimize"],
                sampler=optuna.samplers.NSGAIISampler(population_size=_POPULATION, seed=seed),
            )
        finally:
            logger.setLevel(level)
        self._open: list[tuple[dict[str, Choice], Any]] = []

    def propose(self, count: int, known: Known, hold: Hold) -> list[dict[str, Choice]]:
        """Up to ``count`` configurations, none of which ``known`` knows; fewer when it finds none.

        ``hold`` applies the pins.

        What is proposed has to be told with ``observe`` before the next call.
        """
        found: list[dict[str, Choice]] = []
        for _ in range(_ATTEMPTS * count):
            if len(found) == count:
                break
            trial = self._study.ask(self._space)
            choices = hold({n: self._names[n][word] for n, word in trial.params.items()})
            values = known(choices)
            if values is not None:
                self._tell(trial, *values)
                continue
            self._open.append((choices, trial))
            if choices not in found:
                found.append(choices)
        return found

    def observe(self, choices: Mapping[str, Choice], loss: float, cost: float) -> None:
        """``choices`` was judged, whoever proposed it."""
        mine = [trial for proposed, trial in self._open if proposed == choices]
        self._open = [(p, trial) for p, trial in self._open if p != choices]
        if not mine:
            self._study.enqueue_trial({name: _word(c) for name, c in choices.items()})
            mine = [self._study.ask(self._space)]
        for trial in mine:
            self._tell(trial, loss, cost)

    def _tell(self, trial: Any, loss: float, cost: float) -> None:
        values = [max(-_HUGE, min(_HUGE, v)) if not math.isnan(v) else _HUGE for v in (loss, cost)]
        self._study.tell(trial, values)


def _word(choice: Choice) -> str:
    return f"quantized {choice.variant}" if choice.quantize else "float"
