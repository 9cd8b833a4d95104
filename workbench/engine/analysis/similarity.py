"""How much quantising each layer changes its output: cosine similarity and SQNR in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.events import (
    CancelToken,
    LayerMeasured,
    LayerMeasurement,
    OnEvent,
    Progress,
    check,
    emit,
)
from workbench.engine.export.torch_module import to_fake_quant
from workbench.engine.files.record import Record
from workbench.engine.graph.outputs import flat_output


@dataclass
class ErrorSums:
    """Sums over all values of a reference y and its error d: Σy², Σyd and Σd².

    The cosine of nearly parallel vectors is computed from the error, because 1 − cos of a
    thousandth of a percent drowns in the rounding of the plain quotient.
    """

    yy: float = 0.0
    yd: float = 0.0
    dd: float = 0.0

    def add(self, reference: Any, other: Any) -> None:
        """Two outputs of one layer, each a tensor or a nest of them."""
        y = flat_output(reference)
        d = flat_output(other) - y
        self.yy += float(torch.dot(y, y))
        self.yd += float(torch.dot(y, d))
        self.dd += float(torch.dot(d, d))

    @property
    def cosine(self) -> float:
        """In [-1, 1]; 1 for an all-zero reference, 0 for an all-zero other (chapter 20)."""
        return 1.0 - self.cosine_error

    @property
    def cosine_error(self) -> float:
        """1 − cosine, accurate when it is small."""
        other = self.yy + 2 * self.yd + self.dd
        if self.yy == 0.0:
            return 0.0
        if other <= 0.0:
            return 1.0
        cosine = (self.yy + self.yd) / math.sqrt(self.yy * other)
        if cosine < 0.5:
            return 1.0 - max(-1.0, cosine)
        squared = (self.yy * self.dd - self.yd**2) / (self.yy * other)
        return max(0.0, squared) / (1.0 + cosine)

    @property
    def sqnr_db(self) -> float:
        """10 log₁₀(Σy² / Σd²) in decibel; infinite without an error."""
        if self.dd == 0.0:
            return math.inf
        return 10.0 * math.log10(max(self.yy, 1e-300) / self.dd)


def measure_layers(
    folded: nn.Module,
    record: Record,
    batches: Iterable[Any],
    *,
    names: Collection[str] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> dict[str, LayerMeasurement]:
    """Cosine similarity and SQNR of every recorded layer, each quantised alone on its float input.

    ``folded`` is the float model (``Calibration.folded``), ``batches`` yields input tuples,
    ``weights`` are the fake-quantised ones (``Calibration.fake_weights``), needed where rounding
    was learned. One forward of the float network a batch: a layer's own output there is the
    reference, the same input goes through its fake-quantised twin. Nothing is stored but three sums
    a layer.

    A layer that no batch reaches is not in the result. Source: chapter 20 section 6.2.
    """
    wanted = [n for n in record.layers if names is None or n in names]
    quantized = to_fake_quant(folded, record, wanted, weights=weights)
    sums = {name: ErrorSums() for name in wanted}
    reached: list[str] = []
    handles = []

    def compare(name: str, twin: nn.Module) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            check(cancel)
            sums[name].add(output, twin(*args, **kwargs))
            if name not in reached:
                reached.append(name)
            emit(on_event, LayerMeasured(measurement(name, sums[name])))

        return hook

    for name in wanted:
        twin = quantized.get_submodule(name)
        layer = folded.get_submodule(name)
        handles.append(layer.register_forward_hook(compare(name, twin), with_kwargs=True))
    try:
        with torch.no_grad():
            for done, batch in enumerate(batches):
                check(cancel)
                folded(*(batch if isinstance(batch, tuple) else (batch,)))
                emit(on_event, Progress("similarity", done + 1, 0))
    finally:
        for handle in handles:
            handle.remove()
    return {name: measurement(name, sums[name]) for name in reached}


def measurement(name: str, sums: ErrorSums) -> LayerMeasurement:
    return LayerMeasurement(name, cosine=sums.cosine, sqnr_db=sums.sqnr_db)


def accumulated_cosine(
    folded: nn.Module,
    record: Record,
    batch: tuple[Any, ...],
    *,
    weights: Mapping[str, Tensor] | None = None,
    byte_budget: int = 256 * 2**20,
    cancel: CancelToken | None = None,
) -> dict[str, float]:
    """Cosine of each recorded layer's output in the fully quantised network against the float one.

    One batch, float outputs kept until compared; layers beyond ``byte_budget`` are left out.
    ``weights`` as in ``measure_layers``.
    """
    kept: dict[str, Tensor] = {}
    sums: dict[str, ErrorSums] = {}
    used = 0

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            nonlocal used
            check(cancel)
            vector = flat_output(output)
            size = vector.numel() * vector.element_size()
            if used + size <= byte_budget:
                kept[name] = vector.clone()
                used += size

        return hook

    def compare(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            check(cancel)
            reference = kept.pop(name, None)
            if reference is not None:
                sums[name] = ErrorSums()
                sums[name].add(reference, output)

        return hook

    quantized = to_fake_quant(folded, record, weights=weights)
    for model, hook in ((folded, keep), (quantized, compare)):
        handles = [model.get_submodule(n).register_forward_hook(hook(n)) for n in record.layers]
        try:
            with torch.no_grad():
                model(*batch)
        finally:
            for handle in handles:
                handle.remove()
    return {name: s.cosine for name, s in sums.items()}
