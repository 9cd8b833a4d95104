"""Smallest passing roll-backs of the planted networks by brute force: run by hand.

``python tests/support/planted_minimum.py [NAME…]`` writes ``workbench/zoo/planted.json``.
Trials are those of the search: one calibration of everything, then the subset's layers stay
float and the others are quantised with its factors. Every sample is evaluated, unless those seen
decide already whatever the others score.

How the minimum k is proved:

* The eight *worst* layers are those that lose most when they alone are quantised.
* All subsets of the worst layers, sizes ascending, until one passes: at most k layers are needed.
* No set of fewer than k layers passes: let A be its part among the worst layers. With A *and every
  layer outside the worst* in float the target is missed, so that with fewer of those it is missed
  as well. (This takes for granted that leaving a further layer in float does not help the others
  less; where the bound does not hold, the sets with layers outside are tried one by one.)
* All sets of one layer and of two layers are tried without any bound.
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from workbench.engine.export.torch_module import to_fake_quant
from workbench.engine.files.config import default_config
from workbench.engine.flows.calibration import Calibration
from workbench.engine.graph.capture import capture
from workbench.zoo.planted import ANSWERS, PLANTED, PSNR_CEILING, answers, load_planted

WORST = 8
_CHUNK = 128

log = logging.getLogger("workbench.tests.planted_minimum")


class Subsets:
    """Trials of one planted network: which subsets of its layers may stay float."""

    def __init__(self, name: str, samples: int | None = None) -> None:
        planted = load_planted(name, samples)
        self.evaluator = planted.evaluator
        captured = capture(planted.example.model, planted.inputs)
        calibration = Calibration(captured, default_config(captured.layers, batch_num=1))
        self.evaluator.calibration(calibration.model)
        self._record = calibration.finalize()
        self._folded = calibration.folded
        self.layers = tuple(self._record.layers)
        self.original = self._scores_of(planted.example.model, range(self.count))
        self.all_quantized = self.scores(())
        self.trials = 0
        self._known: dict[frozenset[str], bool] = {}
        # Where the new model can gain, then where it is likely to lose: a set that fails shows
        # it soon, and for certain, because no sample behind these can gain anything.
        best = 1.0 if self.evaluator.metric == "top1" else PSNR_CEILING
        gain = best - self.original
        first = gain > 0 if self.evaluator.metric == "top1" else np.zeros(self.count, bool)
        hurt = (self.all_quantized < self.original) & ~first
        parts = (first, hurt, ~first & ~hurt)
        self._order = np.concatenate([np.flatnonzero(part) for part in parts])
        self._gain_left = np.append(np.cumsum(gain[self._order][::-1])[::-1], 0.0)

    @property
    def count(self) -> int:
        return self.evaluator.sample_count

    def _scores_of(self, model: torch.nn.Module, indices: Iterable[int]) -> NDArray[np.float64]:
        return np.array([s for _, s in self.evaluator.evaluate_samples(model, list(indices))])

    def scores(self, floats: Collection[str]) -> NDArray[np.float64]:
        return self._scores_of(self._model(floats), range(self.count))

    def loss(self, floats: Collection[str]) -> float:
        return float(np.mean(self.original - self.scores(floats)))

    def _model(self, floats: Collection[str]) -> torch.nn.Module:
        names = [name for name in self.layers if name not in floats]
        return to_fake_quant(self._folded, self._record, names)

    def passes(self, floats: Collection[str]) -> bool:
        key = frozenset(floats)
        if key not in self._known:
            self._known[key] = self._passes(key)
        return self._known[key]

    def _passes(self, floats: frozenset[str]) -> bool:
        self.trials += 1
        budget = self.evaluator.max_loss * self.count + 1e-9
        model, total = self._model(floats), 0.0
        for start in range(0, self.count, _CHUNK):
            part = self._order[start : start + _CHUNK]
            total += float(np.sum(self.original[part] - self._scores_of(model, part.tolist())))
            left = self._gain_left[min(start + _CHUNK, self.count)]
            if start + _CHUNK < self.count and total - left > budget:
                return False
        return total <= budget


def worst_layers(subsets: Subsets) -> tuple[str, ...]:
    """The layers that lose most when they alone are quantised, worst first."""
    everything = set(subsets.layers)
    lost = {name: subsets.loss(everything - {name}) for name in subsets.layers}
    return tuple(sorted(lost, key=lambda name: -lost[name]))[:WORST]


def smaller(worst: Collection[str], size: int) -> Iterator[tuple[str, ...]]:
    """All subsets of ``worst`` with fewer than ``size`` members."""
    for count in range(size):
        yield from itertools.combinations(worst, count)


def minimum(subsets: Subsets) -> dict[str, Any]:
    """The smallest size, every roll-back of that size among the worst layers, and the proof."""
    worst = worst_layers(subsets)
    log.info("worst: %s", ", ".join(worst))
    for size in range(WORST + 1):
        found = [c for c in itertools.combinations(worst, size) if subsets.passes(c)]
        log.info("size %d: %d pass (%d trials)", size, len(found), subsets.trials)
        if found:
            break
    else:
        raise SystemExit("no subset of the worst layers passes")
    outside = [name for name in subsets.layers if name not in worst]
    unbounded = 0
    for part in smaller(worst, size):
        if not subsets.passes((*part, *outside)):
            continue
        for more in range(1, size - len(part)):
            for extra in itertools.combinations(outside, more):
                unbounded += 1
                if subsets.passes((*part, *extra)):
                    raise SystemExit(f"{(*part, *extra)} is smaller: take more worst layers")
    for count in (1, 2):
        for candidate in itertools.combinations(subsets.layers, count):
            if count < size and subsets.passes(candidate):
                raise SystemExit(f"{candidate} is smaller: take more worst layers")
    return {
        "minimum": size,
        "smallest": [sorted(c, key=subsets.layers.index) for c in found],
        "worst": list(worst),
        "layers": len(subsets.layers),
        "samples": subsets.count,
        "trials": subsets.trials,
        "tried outside the bound": unbounded,
    }


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    torch.set_num_threads(1)
    for name in sys.argv[1:] or PLANTED:
        log.info("%s", name)
        result = minimum(Subsets(name))
        # Read again: another process may have written its network meanwhile.
        answers.cache_clear()
        stored = answers() if ANSWERS.exists() else {}
        stored = {known: stored[known] for known in PLANTED if known in stored} | {name: result}
        ANSWERS.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
