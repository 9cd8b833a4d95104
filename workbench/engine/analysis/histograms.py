"""Distributions of one layer: its input over the calibration batches, and its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from workbench.engine.errors import WrongState, WrongValue
from workbench.engine.events import CancelToken, check
from workbench.engine.files.record import LayerRecord, Record
from workbench.engine.graph.rnn import joined_weight
from workbench.engine.numerics.integer import int_range


@dataclass(frozen=True)
class LayerHistogram:
    """Counts and bin edges in the layer's own units.

    ``activation_low``/``activation_high`` are the ends of the quantised range (values beyond are
    clipped); ``activation_scale`` is one quantisation step. Weight arrays are empty for a layer
    without weights.
    """

    name: str
    activation_edges: NDArray[np.float64]
    activation_counts: NDArray[np.int64]
    activation_low: float
    activation_high: float
    activation_scale: float
    weight_edges: NDArray[np.float64]
    weight_counts: NDArray[np.int64]
    weight_scales: NDArray[np.float64]


class _InputSeen(Exception):
    """Stops a forward once the layer's input is known."""


def layer_histogram(
    folded: nn.Module,
    record: Record,
    name: str,
    batches: Iterable[Any],
    *,
    bins: int = 256,
    cancel: CancelToken | None = None,
) -> LayerHistogram:
    """Histogram of layer ``name``'s input over ``batches`` and of its weight, ``bins`` bins each.

    Two passes over the batches, each only up to the layer: one for the range, one for the counts.
    Errors: ``ValueError`` for a layer without factors in ``record``, ``RuntimeError`` for a layer
    that no batch reaches.
    """
    entry = record.layers.get(name)
    if entry is None or entry.scale_d is None or entry.offset_d is None:
        raise WrongValue(
            f"layer {name!r} has no activation factors", where="record", hint="calibrate it first."
        )
    layer = folded.get_submodule(name)
    data = list(batches)
    return histogram_of(name, layer, entry, lambda: _inputs(folded, layer, data, cancel), bins=bins)


def histogram_of(
    name: str,
    layer: nn.Module,
    entry: LayerRecord,
    inputs: Callable[[], Iterable[Tensor]],
    *,
    bins: int = 256,
) -> LayerHistogram:
    """The same from the layer's inputs, which are asked for twice."""
    assert entry.scale_d is not None
    assert entry.offset_d is not None
    low, high = np.inf, -np.inf
    for x in inputs():
        a, b = torch.aminmax(x)
        low, high = min(low, float(a)), max(high, float(b))
    if low > high:
        raise WrongState(f"no batch reaches layer {name}", where="histogram")
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = np.zeros(bins, np.int64)
    for x in inputs():
        counts += torch.histc(x.float(), bins, low, high).to(torch.int64).cpu().numpy()
    qmin, qmax = int_range(entry.act_bits)
    recurrent = isinstance(layer, nn.LSTM | nn.GRU)
    weight = joined_weight(layer) if recurrent else getattr(layer, "weight", None)
    weight_counts, weight_edges = np.zeros(0, np.int64), np.zeros(0)
    if isinstance(weight, Tensor):
        weight_counts, weight_edges = np.histogram(weight.detach().float().cpu().numpy(), bins)
    return LayerHistogram(
        name=name,
        activation_edges=np.linspace(low, high, bins + 1),
        activation_counts=counts,
        activation_low=(qmin - entry.offset_d) * entry.scale_d,
        activation_high=(qmax - entry.offset_d) * entry.scale_d,
        activation_scale=entry.scale_d,
        weight_edges=np.asarray(weight_edges, np.float64),
        weight_counts=weight_counts.astype(np.int64),
        weight_scales=np.asarray(
            (*entry.scale_w, *entry.scale_r) if weight_counts.size else (), np.float64
        ),
    )


def _inputs(
    model: nn.Module, layer: nn.Module, batches: list[Any], cancel: CancelToken | None
) -> Iterable[Tensor]:
    for batch in batches:
        check(cancel)
        seen: list[Tensor] = []

        def hook(
            module: nn.Module, args: Any, kwargs: dict[str, Any], seen: list[Tensor] = seen
        ) -> None:
            seen.append((args[0] if args else kwargs["input"]).detach())
            raise _InputSeen

        handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            with torch.no_grad():
                model(*(batch if isinstance(batch, tuple) else (batch,)))
        except _InputSeen:
            pass
        finally:
            handle.remove()
        yield from seen
