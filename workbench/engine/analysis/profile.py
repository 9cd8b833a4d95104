"""One layer as it is quantised: distributions, ranges by channel, and what becomes of its output.

Source: specification chapter 70 section 3 (Inspect).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from workbench.engine.algorithms.arq import to_channel_first
from workbench.engine.analysis.histograms import LayerHistogram, histogram_of
from workbench.engine.analysis.layer_alone import LayerAlone, QuantizedLayer
from workbench.engine.flows.weights import balanced_weight
from workbench.engine.graph.rnn import from_onnx_order, joined_weight, split_weight

SAMPLES = 1500


@dataclass(frozen=True)
class LayerProfile:
    """What the charts of one layer draw, in the layer's own units.

    ``channel_low``, ``channel_high``, ``channel_scales``: smallest and largest weight of each
    output channel (balanced by DMQ, where it is) and its scale, ``weight_bits`` wide; empty without
    weights. ``error_counts`` of output differences (quantised − float) between ``error_edges``.
    ``sample_float`` and ``sample_quantized``: at most ``SAMPLES`` outputs, evenly picked.
    """

    histogram: LayerHistogram
    channel_low: NDArray[np.float64]
    channel_high: NDArray[np.float64]
    channel_scales: NDArray[np.float64]
    weight_bits: int
    error_edges: NDArray[np.float64]
    error_counts: NDArray[np.int64]
    sample_float: NDArray[np.float64]
    sample_quantized: NDArray[np.float64]


def layer_profile(
    alone: LayerAlone, quantized: QuantizedLayer | None = None, *, bins: int = 256
) -> LayerProfile:
    """The profile of a layer quantised like this; None: as configured."""
    quantized = quantized or alone.in_use()
    record = quantized.record
    histogram = histogram_of(
        alone.name, alone.layer, record, lambda: [c.value for c in alone.calls], bins=bins
    )
    low, high, scales = _channels(alone, quantized)
    edges, counts, pairs = _outputs(alone, quantized, bins)
    return LayerProfile(
        histogram=histogram,
        channel_low=low,
        channel_high=high,
        channel_scales=scales,
        weight_bits=record.wts_bits,
        error_edges=edges,
        error_counts=counts,
        sample_float=pairs[0],
        sample_quantized=pairs[1],
    )


def _channels(alone: LayerAlone, quantized: QuantizedLayer) -> tuple[Any, Any, Any]:
    if not alone.info.has_weight:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    record = quantized.record
    if isinstance(alone.layer, nn.RNNBase):
        # The record has its scales in ONNX's order of the gates; weights and this in torch's.
        rows = split_weight(joined_weight(alone.layer), alone.layer)
        scales = [
            from_onnx_order(alone.info.type, torch.tensor(s)) if len(s) > 1 else torch.tensor(s)
            for s in (record.scale_w, record.scale_r)
        ]
        spread = [s.expand(len(r)) for s, r in zip(scales, rows, strict=True)]
        ends = [torch.aminmax(part, dim=1) for part in rows]
        low, high = torch.cat([e.min for e in ends]), torch.cat([e.max for e in ends])
        return _array(low), _array(high), _array(torch.cat(spread))
    weight = alone.layer.get_parameter("weight").detach()
    if record.tensor_balance_factor:
        weight = balanced_weight(weight, alone.info, record.tensor_balance_factor)
    transposed = alone.info.type.startswith("ConvTranspose")
    first = to_channel_first(weight, transposed, alone.info.groups)
    low, high = torch.aminmax(first.reshape(first.shape[0], -1), dim=1)
    given = np.asarray(record.scale_w, np.float64)
    return _array(low), _array(high), np.broadcast_to(given, (len(low),)).copy()


def _array(values: Tensor) -> NDArray[np.float64]:
    return values.float().cpu().numpy().astype(np.float64)


def _outputs(
    alone: LayerAlone, quantized: QuantizedLayer, bins: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], list[NDArray[np.float64]]]:
    """Edges and counts of the output's error, and the sample of both outputs.

    The layer runs twice, so that the outputs of one batch are in memory at a time.
    """
    sizes, largest = [], 0.0
    for reference, given in alone.pairs(quantized):
        sizes.append(reference.numel())
        if reference.numel():
            largest = max(largest, float((given - reference).abs().max()))
    largest = largest if largest > 0 else 1.0
    total = sum(sizes)
    picked = np.linspace(0, total - 1, min(SAMPLES, total)).astype(np.int64)
    counts = np.zeros(bins, np.int64)
    samples: list[list[NDArray[np.float64]]] = [[], []]
    begin = 0
    for reference, given in alone.pairs(quantized):
        found = torch.histc(given - reference, bins, -largest, largest)
        counts += found.to(torch.int64).cpu().numpy()
        end = begin + reference.numel()
        here = torch.from_numpy(picked[(picked >= begin) & (picked < end)] - begin)
        for sample, values in zip(samples, (reference, given), strict=True):
            sample.append(_array(values.cpu()[here]))
        begin = end
    return np.linspace(-largest, largest, bins + 1), counts, [np.concatenate(s) for s in samples]
