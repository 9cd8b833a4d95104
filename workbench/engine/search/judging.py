"""What a search talks about: choices, trials, and who proposes and judges them.

Source: specification chapter 20 section 6.3; decision 13.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """What a trial does with one layer.

    ``variant`` "" means the configuration's own settings; other values name an alternative.
    """

    quantize: bool = True
    variant: str = ""


@dataclass(frozen=True)
class Trial:
    """One judged configuration; ``choices`` in search order.

    ``share`` is the share of the samples that was evaluated: below 1 the verdict came early, and
    ``loss`` and ``metric`` are estimates from those samples. ``cached``: nothing had to be
    evaluated. ``seconds`` is what the evaluation took when it was made.
    """

    choices: Mapping[str, Choice]
    satisfied: bool
    loss: float
    metric: Any
    phase: str
    seconds: float = 0.0
    share: float = 1.0
    cached: bool = False

    @property
    def quantized(self) -> dict[str, bool]:
        return {name: choice.quantize for name, choice in self.choices.items()}

    @property
    def float_layers(self) -> tuple[str, ...]:
        return tuple(name for name, choice in self.choices.items() if not choice.quantize)

    @property
    def variants(self) -> tuple[tuple[str, str], ...]:
        """Quantised layers with other settings than the configuration's, and which."""
        chosen = ((n, c.variant) for n, c in self.choices.items() if c.quantize and c.variant)
        return tuple(chosen)


@dataclass(frozen=True)
class ParetoPoint:
    """A judged configuration and what it costs, in the unit of the objective.

    ``on_front``: no other point is at least as good in both loss and cost and better in one.
    ``measured``: the cost is exact or was measured; False for a latency that is only expected.
    """

    choices: Mapping[str, Choice]
    metric: Any
    loss: float
    cost: float
    satisfied: bool
    on_front: bool = False
    measured: bool = True


class Judge(Protocol):
    """What a strategy of our own may ask of a running search.

    ``layers``: the layers that the search is about, in config order. ``ranking``: smaller means
    more sensitive. ``pins``: layers that the user holds quantised (True) or float (False); it may
    change while the search runs, and the judge applies it to whatever is proposed. ``max_loss``:
    the evaluator's, when the target is an absolute loss of the mean of the samples' scores.
    ``equivalents``: full evaluations spent so far; a sample counts 1/n, the original is free.
    ``workers``: how many trials run side by side.
    """

    @property
    def layers(self) -> tuple[str, ...]: ...
    @property
    def ranking(self) -> Mapping[str, float]: ...
    @property
    def pins(self) -> Mapping[str, bool]: ...
    @property
    def max_loss(self) -> float | None: ...
    @property
    def equivalents(self) -> float: ...
    @property
    def workers(self) -> int: ...

    def trial(
        self, float_layers: Collection[str], phase: str = "search", *, full: bool = False
    ) -> Trial:
        """Judge one configuration; ``full`` asks for every sample, not for an early verdict.

        A configuration that is known costs nothing.
        """
        ...

    def trials(self, candidates: Sequence[Collection[str]], phase: str = "search") -> list[Trial]:
        """Judge independent configurations, side by side when there is an executor."""
        ...

    def prefetch(self, candidates: Sequence[Collection[str]]) -> None:
        """Judge ahead, side by side, what may be asked next; it joins the history when asked."""
        ...

    def scores(
        self, float_layers: Collection[str] | None, indices: Sequence[int] | None = None
    ) -> Scores | None:
        """Scores of these samples (None: all), in the order asked; cached sample by sample.

        ``float_layers`` None: the original model's. None as the answer: the evaluator has no
        ``evaluate_samples``.
        """
        ...


@runtime_checkable
class SearchStrategy(Protocol):
    """A strategy of our own: it asks the judge until it knows."""

    def search(self, judge: Judge, first: Trial) -> Collection[str] | None:
        """The layers to leave in float; None: all of them.

        ``first`` is the judged, missed configuration with everything quantised (but for pins).
        """
        ...


@runtime_checkable
class ProposingStrategy(Protocol):
    """The plug-in protocol for strategies of users: propose, be told, propose again."""

    def propose(self, history: Sequence[Trial]) -> Mapping[str, Choice] | None:
        """The next configuration to judge; None ends the search.

        Layers that the mapping does not name are quantised. The answer of the search is the
        passing trial with the fewest float layers, of equals the one with the smallest loss.
        """
        ...

    def observe(self, trial: Trial) -> None:
        """Called with the judgement of each proposal."""
        ...
