"""The judge of a search over variants: it has whole choices measured, always on every sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workbench.engine.search.judging import Choice, Trial
from workbench.engine.search.models import Factors
from workbench.engine.search.runner import Key, Runner
from workbench.engine.search.trials import TrialJudge
from workbench.engine.search.variants import VariantFactors, join


class ParetoJudge(TrialJudge):
    """Until ``open`` it works like any judge; from then on a trial's key names variants, too."""

    _variants: VariantFactors | None = None

    def open(self, factors: VariantFactors, first: Trial) -> None:
        """``first``: the judgement of everything quantised as configured."""
        if self._runner is not None:
            self._final_equivalents += self._runner.equivalents
        self._variants = factors
        self._runner = Runner(self._setup, self._base, factors, self._plan, self.judged)
        key = factors.key(first.choices)
        self._known[key] = first
        self._asked.add(key)

    @property
    def base(self) -> str:
        """What every trial depends on, for keys of the cache."""
        return self._base

    def judge(self, candidates: Sequence[Mapping[str, Choice]]) -> list[Trial]:
        """Judgements in order, side by side when there is an executor."""
        assert self._variants is not None
        keys = [self._variants.key(choices) for choices in candidates]
        self._judge(keys, "search", full=True)
        return [self._ask(key, "search") for key in keys]

    def finally_judged(self, factors: Factors, choices: Mapping[str, Choice]) -> Trial:
        """Judge ``choices`` with the factors of their own calibration."""
        assert self._variants is not None
        layers: dict[str, list[str]] = {}
        for name, choice in choices.items():
            if choice.quantize:
                layers.setdefault(choice.variant, []).append(name)
        parts = [(variant, factors.selected(names)) for variant, names in layers.items()]
        own = join(factors.folded, parts, tuple(choices))
        runner = Runner(self._setup, self._base, own, self._plan, self.judged)
        return self._final(runner, self._variants.key(choices))

    def _choices(self, key: Key) -> dict[str, Choice]:
        if self._variants is None:
            return super()._choices(key)
        found = self._variants.choices(key)
        return {name: found[name] for name in self._search_order()}

    def _move_bracket(self, key: Key, satisfied: bool) -> None:
        if self._variants is None:
            super()._move_bracket(key, satisfied)
