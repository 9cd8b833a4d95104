"""How many channels lie between the two layers of a pair, by the rule the caller names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.engine.algorithms.evbmf import (
    energy_rank,
    estimate_noise,
    possible_ranks,
    select_rank,
)
from workbench.engine.algorithms.tensor_decomposition import (
    ChooseRank,
    Method,
    RankChoice,
    Spectrum,
)
from workbench.engine.errors import WrongType, WrongValue
from workbench.engine.flows.decompose_plan import Candidate
from workbench.engine.graph.kernel_split import KernelSplit

RULES = ("compat", "scale_free", "energy")
_WHERE = "auto_decomposition()"
_SKETCHED = 8192
"""Rows beyond which a sketch may stand in for the spectrum; it then takes the band's upper end."""


class RankRule:
    """``rule``: one of ``RULES``, a rank for every layer, or ranks by name (others: compat).

    Raises ``TypeError`` and ``ValueError`` for what the rule cannot be.
    """

    def __init__(self, rule: Any, energy: float) -> None:
        self._energy = energy
        self._fixed: Mapping[str, int] = {}
        self._everywhere: int | None = None
        self._name = "compat"
        if isinstance(rule, str):
            if rule not in RULES:
                raise WrongValue(
                    f"rank_rule is {rule!r}; allowed: {', '.join(RULES)}, an int, {{name: int}}",
                    where=_WHERE,
                )
            self._name = rule
        elif isinstance(rule, Mapping):
            self._fixed = {name: _whole(rank, f"of {name!r} ") for name, rank in rule.items()}
        else:
            self._everywhere = _whole(rule, "")

    def check(self, candidates: Sequence[Candidate]) -> None:
        """Every name is one that is decomposed, every rank is possible; else ``ValueError``."""
        rows = {c.name: c.split.rows for c in candidates if not c.skipped}
        reasons = {c.name: c.skipped for c in candidates}
        problems = []
        for name in self._fixed:
            if name not in rows:
                reason = reasons.get(name) or "there is no such Conv2d"
                problems.append(f"layer {name} cannot be decomposed: {reason}")
        for name, most in rows.items():
            rank = self._given(name)
            if rank is not None and not 1 <= rank <= most:
                problems.append(f"the rank of layer {name} is {rank}; allowed: 1 to {most}")
        if problems:
            text = problems[0] if len(problems) == 1 else "\n- ".join(["", *problems])
            raise WrongValue(text, where=f"{_WHERE} rank_rule")

    def chooser(self, candidate: Candidate, method: Method) -> tuple[ChooseRank, Method]:
        """The choice for one layer, and the method: a sketch only where it needs no spectrum."""
        split = candidate.split
        given = self._given(candidate.name)
        ranks = (given,) if given is not None else self._possible(split)
        if len(ranks) == 1 or (method == "randomised" and split.rows > _SKETCHED and ranks):
            # A spectrum that cannot change the choice is not computed.
            return (lambda _: RankChoice(ranks[-1])), method

        def choose(spectrum: Spectrum) -> RankChoice:
            return self._from_spectrum(spectrum, split)

        return choose, "gram" if method == "randomised" else method

    def least(self, candidate: Candidate) -> int:
        """The smallest rank the layer can get."""
        given = self._given(candidate.name)
        if given is not None:
            return given
        return next(iter(self._possible(candidate.split)), 1)

    def _given(self, name: str) -> int | None:
        return self._fixed.get(name, self._everywhere)

    def _possible(self, split: KernelSplit) -> tuple[int, ...]:
        """All ranks of the band; empty when the rule has none."""
        return () if self._name == "energy" else possible_ranks(split.rows, split.channels)

    def _from_spectrum(self, spectrum: Spectrum, split: KernelSplit) -> RankChoice:
        values = spectrum()
        if self._name == "energy":
            return RankChoice(energy_rank(values, self._energy))
        noise = estimate_noise(values, split.columns, relative=self._name == "scale_free")
        return RankChoice(select_rank(noise.rank, split.rows, split.channels), noise.rank)


def _whole(value: Any, which: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise WrongType(
            f"rank_rule: the rank {which}must be int, it is {type(value).__name__}", where=_WHERE
        )
    return value
