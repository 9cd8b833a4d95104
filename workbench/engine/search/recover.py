"""``Recover``: few layers left in float for few evaluations.

With an evaluator that scores single samples, the search works on the samples that quantisation
hurts and asks for whole judgements only of what it believes in:

1. the all-quantised configuration names the samples that quantisation hurts;
2. on those, the shortest prefix of the ranking that passes is found (gallop, then bisect);
3. each layer of the prefix is returned on its own; in the order of what that costs as many as
   possible are given back at once, then the others one by one;
4. the remaining set is judged. Missed: the samples that it changed join the hard ones, and the
   search goes on from it. Passed: layers are given back one by one while the target holds; what
   misses it on the hard samples beyond doubt is not judged again.

Without such an evaluator the same steps are made with whole evaluations, giving back in halves.

Source: our own; giving back in groups as in delta debugging (Zeller and Hildebrandt 2002,
"Simplifying and isolating failure-inducing input"), the ranking is chapter 20 section 6.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from workbench.engine.search.judging import Judge, Scores, Trial
from workbench.engine.search.probes import Probes

log = logging.getLogger("workbench.engine.search.recover")

BUDGET = 7.0
"""Full evaluations, the first one included; the final one of the accepted set comes on top."""

_PROBE_SHARE = 24
"""One estimate evaluates at most about 1/24 of the samples."""
_FEWEST = 48
_ROUNDS = 4
_CERTAIN = 6.0
"""Standard errors beyond the target from which a miss is not judged again on every sample."""

Layers = tuple[str, ...]
Passes = Callable[[Collection[str]], bool]


class RecoverStrategy:
    """Give up as few layers as possible within ``budget`` full evaluations.

    A target is met before the budget is kept: what is cut short is giving layers back.
    Deterministic for one ``seed``.
    """

    def __init__(self, *, budget: float = BUDGET, seed: int = 0) -> None:
        self.budget = budget
        self.seed = seed

    def search(self, judge: Judge, first: Trial) -> Collection[str] | None:
        """The layers to leave in float; None: all of them."""
        run = _Run(judge, self.budget)
        if judge.max_loss is not None and (original := judge.scores(None)) is not None:
            answer = _BySamples(run, original, self.seed).search()
        else:
            answer = _whole_search(run)
        floats = None if answer is None else run.pinned(answer)
        return None if floats is None or len(floats) == len(judge.layers) else floats


class _Run:
    """What both ways of searching share: the order of the layers, pins and whole judgements."""

    def __init__(self, judge: Judge, budget: float) -> None:
        self.judge = judge
        self._budget = budget

    @property
    def order(self) -> Layers:
        """Free layers, most sensitive first; of equals the earlier one first."""
        free = [name for name in self.judge.layers if name not in self.judge.pins]
        return tuple(sorted(free, key=lambda name: self.judge.ranking[name]))

    def pinned(self, float_layers: Collection[str]) -> Layers:
        """``float_layers`` as the user's pins change them, in config order."""
        pins = self.judge.pins
        return tuple(
            name
            for name in self.judge.layers
            if (not pins[name] if name in pins else name in float_layers)
        )

    def passes(self, float_layers: Collection[str]) -> bool:
        floats = self.pinned(float_layers)
        # With everything in float it is the original, which nobody needs to evaluate.
        return len(floats) == len(self.judge.layers) or self.judge.trial(floats).satisfied

    @property
    def may_go_on(self) -> bool:
        return self.judge.equivalents < self._budget


def shortest_prefix(base: Layers, order: Sequence[str], passes: Passes) -> Layers:
    """``base`` and the shortest passing prefix of ``order``, if passing is monotone.

    ``base`` alone has missed. Everything is taken to pass and never asked: float is the original.
    """
    low, high, step = 0, len(order), 1
    while low + step < len(order):
        if passes((*base, *order[: low + step])):
            high = low + step
            break
        low, step = low + step, step * 2
    while high - low > 1:
        middle = (low + high) // 2
        if passes((*base, *order[:middle])):
            high = middle
        else:
            low = middle
    return (*base, *order[:high])


def without(layers: Sequence[str], gone: Collection[str]) -> Layers:
    return tuple(name for name in layers if name not in gone)


def _ascending(layers: Layers, cost: Mapping[str, float]) -> Layers:
    """Cheapest to return first; of equals the less sensitive one, which comes later."""
    return tuple(sorted(layers, key=lambda name: (cost[name], -layers.index(name))))


class _BySamples:
    """The search with scores of single samples."""

    def __init__(self, run: _Run, original: Scores, seed: int) -> None:
        self._run = run
        self._judge = run.judge
        self._original = original
        assert run.judge.max_loss is not None
        self._max_loss = run.judge.max_loss
        limit = max(_FEWEST, len(original) // _PROBE_SHARE)
        self._probes = Probes(run.judge, original, limit=limit, seed=seed)
        quantized = self._scores(())
        everything = np.arange(len(original))
        self._probes.learn(everything, quantized)
        # Where a change can be expected at all: hurt by quantisation, or not at its best before.
        self._likely = everything[(quantized != original) | (original < original.max())]

    def _scores(
        self, float_layers: Collection[str], indices: Sequence[int] | None = None
    ) -> Scores:
        scores = self._judge.scores(self._run.pinned(float_layers), indices)
        assert scores is not None
        return scores

    def _estimate(self, float_layers: Collection[str]) -> float:
        return self._probes.loss(self._run.pinned(float_layers))

    def _seems_to_pass(self, float_layers: Collection[str]) -> bool:
        return self._estimate(float_layers) <= self._max_loss

    def search(self) -> Layers | None:
        base: Layers = ()
        for number in range(_ROUNDS):
            found = self._solve(base)
            if self._run.passes(found):
                return self._give_back_for_real(found)
            if not without(self._run.order, found):
                return None  # the layers that are held quantised miss the target by themselves
            log.info("round %d: %d layers in float miss the target", number + 1, len(found))
            self._probes.learn(self._likely, self._scores(found, self._likely.tolist()))
            base = found
        return _whole_search(self._run, base)

    def _solve(self, base: Layers) -> Layers:
        """A small set that passes on the hard samples; ``base`` failed before."""
        rest = without(self._run.order, base)
        if base and self._seems_to_pass(base):
            # The estimate cannot see why it fails: it lies on the border. One more layer.
            return (*base, *rest[:1])
        prefix = shortest_prefix(base, rest, self._seems_to_pass)
        return self._give_back(prefix)

    def _give_back(self, prefix: Layers) -> Layers:
        """As many as possible at once, the cheapest to return first, then one by one."""
        cost = {name: self._estimate(without(prefix, (name,))) for name in prefix}
        cheapest = _ascending(prefix, cost)
        low, high = 0, len(cheapest)  # high: everything quantised, which failed
        guess = sum(1 for name in cheapest if cost[name] <= self._max_loss)
        while high - low > 1:
            middle = min(max(guess, low + 1), high - 1)
            if self._seems_to_pass(without(prefix, cheapest[:middle])):
                low, guess = middle, middle + 1
            else:
                high, guess = middle, (low + middle) // 2
        kept = without(prefix, cheapest[:low])
        for name in cheapest[low + 1 :]:
            if self._seems_to_pass(fewer := without(kept, (name,))):
                kept = fewer
        return kept

    def _give_back_for_real(self, found: Layers) -> Layers:
        """Judge every set with one layer less, unless the hard samples leave no doubt."""
        cost = {name: self._estimate(without(found, (name,))) for name in found}
        for name in _ascending(found, cost):
            if not self._run.may_go_on:
                break
            fewer = without(found, (name,))
            loss, error = self._probes.estimate(self._run.pinned(fewer))
            if loss - _CERTAIN * error <= self._max_loss and self._run.passes(fewer):
                found = fewer
        return found


def _whole_search(run: _Run, base: Layers = ()) -> Layers | None:
    """Prefix and giving back with whole judgements; None when nothing passes."""
    found = shortest_prefix(base, without(run.order, base), run.passes)
    if len(found) == len(run.order) and not run.passes(found):
        return None
    # The last layer of the prefix is needed if the one before missed; the others go in groups.
    groups = [found[:-1]]
    while groups and run.may_go_on:
        group = groups.pop(0)
        if not group:
            continue
        if run.passes(fewer := without(found, group)):
            found = fewer
        elif len(group) > 1:
            # The least sensitive half is the better guess.
            groups[:0] = [group[len(group) // 2 :], group[: len(group) // 2]]
    return found
