"""Which configurations are worth a trial, from those that were judged.

The loss is taken for a sum of one number a layer and choice. Before any trial these are the errors
of the layers alone times a common factor; each trial corrects them (Bayesian linear regression,
Rasmussen and Williams 2006, sections 2.1 and 5.4). Both sums being separable, all configurations
that the model takes for non-dominated are found by dynamic programming.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workbench.engine.search.costs import CostTable, Options
from workbench.engine.search.judging import Choice

Floats = NDArray[np.float64]

_KEPT = 1000
"""Partial configurations that are kept a layer; more are thinned evenly along the front."""

_POWERS = (0.0, 0.5, 1.0)
_NOISES = (0.01, 0.05, 0.2)
_TRUSTS = (0.3, 1.0, 3.0)
"""What is tried for the unknowns of the model; the trials say which fits (evidence)."""


class _Fit(NamedTuple):
    """``gain`` turns what the trials say beyond the prior into corrections of it."""

    evidence: float
    mean: Floats
    gain: Floats
    noise: Floats
    deviation: Floats


class Surrogate:
    """``errors``: of each layer alone, by choice; float is 0. ``scale``: a loss that matters."""

    def __init__(
        self, options: Options, errors: Mapping[tuple[str, Choice], float], costs: CostTable
    ) -> None:
        self._options = options
        self._index = {
            pair: i
            for i, pair in enumerate(
                (name, c) for name, allowed in options.items() for c in allowed if c.quantize
            )
        }
        known = np.array([max(0.0, errors[pair]) for pair in self._index])
        smallest = float(np.max(known, initial=0.0)) * 1e-4
        self._errors: Floats = np.maximum(known, smallest or 1.0)
        self._costs = {n: np.array([costs.parts[n][c] for c in a]) for n, a in options.items()}
        self._rows: list[Floats] = []
        self._losses: list[float] = []

    def observe(self, choices: Mapping[str, Choice], loss: float) -> None:
        """``choices`` was judged; losses that are not finite teach nothing."""
        if np.isfinite(loss):
            row = np.zeros(len(self._index))
            for name, choice in choices.items():
                if choice.quantize:
                    row[self._index[name, choice]] = 1.0
            self._rows.append(row)
            self._losses.append(loss)

    def front(
        self,
        scale: float,
        pins: Mapping[str, bool],
        generator: np.random.Generator | None = None,
    ) -> list[tuple[dict[str, Choice], float]]:
        """Configurations taken for non-dominated, cheapest first, with their expected loss.

        ``scale``: losses much below it are all as good. ``generator``: expect what may well be
        true instead of what is most likely (Thompson sampling).
        """
        weights = self._expected(scale, generator)
        return self._non_dominated(weights, pins)

    def _expected(self, scale: float, generator: np.random.Generator | None) -> Floats:
        rows, losses = np.array(self._rows), np.array(self._losses)
        if not len(rows) or not np.any(rows):
            return self._errors
        fits = (
            self._fit(rows, losses, scale, *unknowns)
            for unknowns in itertools.product(_POWERS, _NOISES, _TRUSTS)
        )
        _, mean, gain, noise, deviation = max(fits, key=lambda fit: fit.evidence)
        if generator is None:
            return mean
        # Matheron's rule: a draw of the prior, corrected as the mean is.
        drawn = deviation * generator.standard_normal(len(deviation))
        told = rows @ drawn + noise * generator.standard_normal(len(noise))
        sample: Floats = mean + drawn - gain @ told
        return sample

    def _fit(
        self,
        rows: Floats,
        losses: Floats,
        scale: float,
        power: float,
        noise: float,
        trust: float,
    ) -> _Fit:
        """The losses go with the ``power`` of the errors.

        ``noise``: how far a loss may be from a sum; ``trust``: in the errors; both relative.
        """
        errors = self._errors**power
        noises = noise * (np.abs(losses) + 0.2 * scale)
        sums = rows @ errors
        weights = 1.0 / (np.abs(losses) + 0.2 * scale) ** 2
        factor = float(np.sum(sums * losses * weights) / max(np.sum(sums**2 * weights), 1e-300))
        prior = max(factor, 1e-12) * errors
        deviation = np.hypot(prior / trust, 0.05 * scale / max(1, len(self._options)))
        scaled = rows * deviation**2
        spread = scaled @ rows.T + np.diag(noises**2)
        left = losses - rows @ prior
        _, logarithm = np.linalg.slogdet(spread)
        evidence = -0.5 * float(left @ np.linalg.solve(spread, left) + logarithm)
        gain = np.linalg.solve(spread, scaled).T
        return _Fit(evidence, prior + gain @ left, gain, noises, deviation)

    def _non_dominated(
        self, weights: Floats, pins: Mapping[str, bool]
    ) -> list[tuple[dict[str, Choice], float]]:
        losses, costs = np.zeros(1), np.zeros(1)
        taken = np.zeros((1, 0), np.int64)
        for name, allowed in self._options.items():
            usable = usable_choices(allowed, pins.get(name))
            picks = np.array([allowed.index(c) for c in usable])
            own = np.array([weights[self._index[name, c]] if c.quantize else 0.0 for c in usable])
            all_losses = (losses[:, None] + own[None, :]).ravel()
            all_costs = (costs[:, None] + self._costs[name][picks][None, :]).ravel()
            kept = non_dominated(all_losses, all_costs)
            if len(kept) > _KEPT:
                kept = kept[np.linspace(0, len(kept) - 1, _KEPT).astype(int)]
            before, which = np.divmod(kept, len(usable))
            taken = np.concatenate([taken[before], picks[which][:, None]], axis=1)
            losses, costs = all_losses[kept], all_costs[kept]
        names = list(self._options)
        return [
            (
                {n: self._options[n][int(i)] for n, i in zip(names, row, strict=True)},
                float(loss),
            )
            for row, loss in zip(taken, losses, strict=True)
        ]


def usable_choices(allowed: Sequence[Choice], pin: bool | None) -> list[Choice]:
    """What a pin leaves: True quantised in any way, False float, None everything."""
    return [c for c in allowed if pin is None or c.quantize is pin]


def non_dominated(losses: Floats, costs: Floats) -> NDArray[np.int64]:
    """Indices of the points that no other beats, cheapest first; one of equals."""
    order = np.lexsort((losses, costs))
    best = np.minimum.accumulate(losses[order])
    better = np.concatenate([[True], losses[order][1:] < best[:-1]])
    kept: NDArray[np.int64] = order[better]
    return kept
