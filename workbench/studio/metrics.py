"""How good are a network's outputs: top-1, PSNR, cosine similarity to the float outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.engine.errors import WrongType, WrongValue
from workbench.engine.events import CancelToken, OnEvent, Progress, check, emit
from workbench.studio.code import load_object

Model = Callable[..., Any]


@dataclass(frozen=True)
class Batch:
    """Positional ``inputs`` of one call and what they should give, or None."""

    inputs: tuple[Tensor, ...]
    target: Tensor | None = None


Score = Callable[[Model, Iterable[tuple[tuple[Tensor, ...], Tensor | None]]], float]
"""``metric(model, batches) -> float``: a higher value is better; ``batches`` can be read once."""


SampleScores = Callable[[Model, tuple[Tensor, ...], Tensor | None], Tensor]
"""Scores of the samples of one batch; the metric is their mean."""


@dataclass(frozen=True)
class Metric:
    """``samples``: the score of each sample, where the metric is a mean over samples.

    ``limits``: smallest and largest score of a sample.
    """

    name: str
    score: Score
    samples: SampleScores | None = None
    limits: tuple[float, float] | None = None

    def __call__(
        self,
        model: Model,
        batches: Sequence[Batch],
        *,
        on_event: OnEvent | None = None,
        cancel: CancelToken | None = None,
    ) -> float:
        """The metric of ``model``; ``WrongValue`` if it is not a finite number."""

        def reporting() -> Iterator[tuple[tuple[Tensor, ...], Tensor | None]]:
            for done, batch in enumerate(batches):
                check(cancel)
                yield batch.inputs, batch.target
                emit(on_event, Progress("evaluation", done + 1, len(batches)))

        with torch.no_grad():
            value = self.score(model, reporting())
        check(cancel)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise WrongType(
                f"the metric returned {type(value).__name__}, not a number",
                where=self.name,
                hint="Return one number, higher for a better model.",
            ) from None
        if not math.isfinite(number):
            raise WrongValue(
                f"the metric is {number}",
                where=self.name,
                hint="Check the model's outputs and the labels for NaN.",
            )
        return number


def first_tensor(output: Any) -> Tensor:
    """The tensor that built-in metrics look at: the output, or its first part."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, list | tuple):
        for part in output:
            if isinstance(part, Tensor):
                return part
    raise WrongType(
        f"the model returns {type(output).__name__}; the built-in metrics need a tensor",
        where="metric",
        hint="Give a metric of your own: metric(model, batches) -> float.",
    )


class TopK:
    """Share of samples whose label is among the ``k`` largest outputs."""

    def __init__(self, k: int) -> None:
        self._k = k
        self.name = f"top{k}"

    def __call__(
        self, model: Model, batches: Iterable[tuple[tuple[Tensor, ...], Tensor | None]]
    ) -> float:
        right = count = 0
        for inputs, target in batches:
            hits = self._hits(model, inputs, target)
            right += int(hits.sum())
            count += hits.numel()
        return right / count if count else math.nan

    def samples(self, model: Model, inputs: tuple[Tensor, ...], target: Tensor | None) -> Tensor:
        """1 for a sample that counts, else 0; a mean where a sample has many labels."""
        hits = self._hits(model, inputs, target)
        return hits.double().reshape(len(hits), -1).mean(dim=1)

    def _hits(self, model: Model, inputs: tuple[Tensor, ...], target: Tensor | None) -> Tensor:
        if target is None:
            raise WrongValue(
                f"{self.name} needs labels",
                where="metric",
                hint="Use cosine, or give data with labels.",
            )
        output = first_tensor(model(*inputs))
        if self._k == 1:
            return output.argmax(dim=1).cpu() == target.cpu()
        best = output.topk(min(self._k, output.shape[1]), dim=1).indices.cpu()
        return (best == target.cpu().unsqueeze(1)).any(dim=1)


top1, top5 = TopK(1), TopK(5)


def psnr(model: Model, batches: Iterable[tuple[tuple[Tensor, ...], Tensor | None]]) -> float:
    """Peak signal-to-noise ratio in decibel for signals in [0, 1], over all samples together."""
    squared, count = 0.0, 0
    for inputs, target in batches:
        wanted = inputs[0] if target is None else target
        output = first_tensor(model(*inputs))
        squared += float(((output.cpu().double() - wanted.cpu().double()) ** 2).sum())
        count += output.numel()
    if count == 0:
        return math.nan
    return 200.0 if squared == 0 else min(200.0, -10.0 * math.log10(squared / count))


class CosineToFloat:
    """Mean over samples of the cosine similarity of the outputs to the float network's."""

    def __init__(self, reference: Model) -> None:
        self._reference = reference

    def __call__(
        self, model: Model, batches: Iterable[tuple[tuple[Tensor, ...], Tensor | None]]
    ) -> float:
        total, count = 0.0, 0
        for inputs, target in batches:
            cosine = self.samples(model, inputs, target)
            total += float(cosine.sum())
            count += len(cosine)
        return total / count if count else math.nan

    def samples(self, model: Model, inputs: tuple[Tensor, ...], target: Tensor | None) -> Tensor:
        """The cosine of each sample of one batch."""
        wanted = first_tensor(self._reference(*inputs)).double().cpu()
        output = first_tensor(model(*inputs)).double().cpu()
        rows = max(1, wanted.shape[0]) if wanted.dim() else 1
        a, b = wanted.reshape(rows, -1), output.reshape(rows, -1)
        norms = a.norm(dim=1) * b.norm(dim=1)
        return torch.where(norms > 0, (a * b).sum(dim=1) / norms, (a == b).all(dim=1).double())


BUILT_IN = ("top1", "top5", "psnr", "cosine")


def resolve(
    name: str, *, reference: Model, batches: Sequence[Batch], given: Score | None = None
) -> Metric:
    """The metric called ``name``; empty: top-1 with labels, else cosine to the float outputs.

    Errors: ``WrongValue`` for an unknown name, ``CodeNotAllowed`` for a function of a module when
    code loading is off.
    """
    if given is not None:
        return Metric(name or getattr(given, "__name__", "metric"), given)
    target = batches[0].target if batches else None
    if not name:
        name = "top1" if target is not None and not target.is_floating_point() else "cosine"
    for best in (top1, top5):
        if name == best.name:
            return Metric(name, best, best.samples, (0.0, 1.0))
    if name == "psnr":
        return Metric(name, psnr)
    if name == "cosine":
        cosine = CosineToFloat(reference)
        # Rounding takes a cosine a little beyond 1.
        return Metric(name, cosine, cosine.samples, (-1.0 - 1e-9, 1.0 + 1e-9))
    check_name(name)
    function = load_object(name, what="metric")
    if not callable(function):
        raise WrongType(f"{name} is not a function", where="metric")
    return Metric(name, function)


def check_name(name: str) -> None:
    """Errors: ``WrongValue`` for what names no metric; empty is the default one."""
    if name and name not in BUILT_IN and ":" not in name:
        raise WrongValue(
            f"there is no metric {name!r}",
            where="metric",
            hint=f"Choose one of {', '.join(BUILT_IN)}, or package.module:function.",
        )
