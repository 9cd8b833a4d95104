"""The project's data and metric as the search's evaluator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from workbench.engine.events import CancelToken, Event, OnEvent, Progress, check
from workbench.engine.search.evaluator import AutoCalibrationEvaluatorBase
from workbench.studio.image_folder import ImageBatches
from workbench.studio.metrics import Batch
from workbench.studio.sources import LoadedSource


class StudioEvaluator(AutoCalibrationEvaluatorBase):
    """Satisfied when the metric falls by at most ``max_loss`` (in the metric's own unit)."""

    def __init__(
        self,
        source: LoadedSource,
        max_loss: float,
        on_event: OnEvent,
        cancel: CancelToken,
        *,
        identity: str = "",
    ) -> None:
        self._source, self.max_loss = source, max_loss
        self._on_event, self._cancel = on_event, cancel
        self.identity = identity

    def calibration(self, model: nn.Module) -> None:
        total = len(self._source.calibration)
        for done, batch in enumerate(self._source.calibration):
            check(self._cancel)
            model(*batch)
            self._on_event(Progress("calibration", done + 1, total))

    def evaluate(self, model: nn.Module) -> float:
        return self._source.metric(
            model, self._source.evaluation, on_event=self._report, cancel=self._cancel
        )

    def metric_eval(self, original_metric: Any, new_metric: Any) -> tuple[bool, float]:
        loss = float(original_metric) - float(new_metric)
        # Accuracies are multiples of 1/n; a loss of exactly the target must not fail by rounding.
        return loss <= self.max_loss + 1e-12, loss

    def _report(self, event: Event) -> None:
        self._on_event(event)


class SamplingEvaluator(StudioEvaluator):
    """The same for a metric that is a mean over samples: these can be scored one by one."""

    def __init__(self, source: LoadedSource, *args: Any, **kwargs: Any) -> None:
        super().__init__(source, *args, **kwargs)
        self._rows = rows_of(source.evaluation)
        self.sample_count = self._rows.samples
        self.score_range = source.metric.limits

    def evaluate_samples(
        self, model: nn.Module, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[int, float]]:
        """Samples are put together to batches of the size that the data has."""
        scores = self._source.metric.samples
        assert scores is not None
        wanted = range(self.sample_count) if indices is None else indices
        size = self._source.evaluation[0].inputs[0].shape[0]
        for start in range(0, len(wanted), size):
            check(self._cancel)
            part = wanted[start : start + size]
            batch = self._rows.gather(part)
            inputs, target = batch.inputs, batch.target
            with torch.no_grad():
                yield from zip(part, scores(model, inputs, target).tolist(), strict=True)
            self._on_event(Progress("evaluation", start + len(part), len(wanted)))


def studio_evaluator(
    source: LoadedSource, samples: bool, *args: Any, **kwargs: Any
) -> StudioEvaluator:
    """The evaluator of a project; ``samples``: the model takes batches of any size."""
    if samples and source.metric.samples is not None and by_rows(source.evaluation):
        return SamplingEvaluator(source, *args, **kwargs)
    return StudioEvaluator(source, *args, **kwargs)


def by_rows(batches: Sequence[Batch]) -> bool:
    """Whether a row of every tensor of every batch is one sample, all of the same shape."""
    if isinstance(batches, ImageBatches):
        return True
    shapes = set()
    for batch in batches:
        tensors = [*batch.inputs, *([] if batch.target is None else [batch.target])]
        if any(x.dim() == 0 or x.shape[0] != batch.inputs[0].shape[0] for x in tensors):
            return False
        shapes.add(tuple((tuple(x.shape[1:]), x.dtype) for x in tensors))
    return len(shapes) == 1


class Rows(Protocol):
    """Samples that can be put together to batches in any order."""

    @property
    def samples(self) -> int: ...
    def gather(self, rows: Sequence[int]) -> Batch: ...


def rows_of(batches: Sequence[Batch]) -> Rows:
    return batches if isinstance(batches, ImageBatches) else RowsInMemory(batches)


class RowsInMemory:
    """The samples of batches that are in memory."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._places = [
            (batch, row) for batch in batches for row in range(batch.inputs[0].shape[0])
        ]

    @property
    def samples(self) -> int:
        return len(self._places)

    def gather(self, rows: Sequence[int]) -> Batch:
        return Batch(*gather([self._places[row] for row in rows]))


def gather(places: Sequence[tuple[Batch, int]]) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """The samples at these rows of these batches, as one batch."""
    first = places[0][0]
    inputs = tuple(
        torch.stack([batch.inputs[k][row] for batch, row in places])
        for k in range(len(first.inputs))
    )
    if first.target is None:
        return inputs, None
    return inputs, torch.stack([b.target[row] for b, row in places if b.target is not None])
