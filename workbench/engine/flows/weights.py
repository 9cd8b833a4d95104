"""Weight calibration: the scale and the fake-quantised weight of every enabled layer.

Source: specification chapter 10 sections 3.3 (step 4) and 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from workbench.engine.algorithms.arq import (
    arq_scale,
    fake_quantize_weight,
    from_channel_first,
    to_channel_first,
)
from workbench.engine.algorithms.dmq import balance_weight
from workbench.engine.algorithms.kl import kl_scale
from workbench.engine.events import CancelToken, OnEvent, Progress, check, emit
from workbench.engine.files.config import QuantConfig, WeightParams, default_weight
from workbench.engine.files.record import LayerRecord
from workbench.engine.flows.folding import folded_copy
from workbench.engine.flows.rnn import recurrent_weights
from workbench.engine.graph.capture import Captured
from workbench.engine.graph.folding import FoldPlan
from workbench.engine.graph.layers import LayerInfo
from workbench.engine.graph.rnn import RNN_TYPES

BIAS_CODE_LIMIT = 2**30
"""Largest bias code that is sought: what the products add to it fits in int32, too."""


@dataclass(frozen=True)
class WeightResult:
    """``records``: every enabled layer, in ``named_modules()`` order. ``weights``: fake-quantised
    float weights (grid values) by layer name, in the weight's own dtype and layout."""

    records: Mapping[str, LayerRecord]
    weights: Mapping[str, Tensor]


def calibrate_weights(
    folded: nn.Module,
    layers: Mapping[str, LayerInfo],
    config: QuantConfig,
    *,
    balance: Mapping[str, tuple[float, ...]] | None = None,
    compat: bool = False,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> WeightResult:
    """Quantise the weights of ``folded``, which is not changed.

    ``balance``: DMQ factors by layer; those weights are multiplied first (D8), and the records hold
    the factors.
    """
    enabled = set(config.enabled())
    names = [name for name, _ in folded.named_modules() if name in enabled]
    records: dict[str, LayerRecord] = {}
    weights: dict[str, Tensor] = {}
    for done, name in enumerate(names):
        check(cancel)
        # An entry without weight settings of a layer with a weight stands for the defaults.
        settings = config.layers[name].weight or default_weight(layers[name])
        if not layers[name].has_weight:
            records[name] = LayerRecord(scale_w=(1.0,), offset_w=(0,))
            continue
        if layers[name].type in RNN_TYPES:
            layer = folded.get_submodule(name)
            records[name], weights[name] = recurrent_weights(
                layer, layers[name], settings, compat=compat
            )
            emit(on_event, Progress("weights", done + 1, len(names)))
            continue
        weight = stored = folded.get_submodule(name).get_parameter("weight").detach()
        factors = (balance or {}).get(name, ())
        if factors:
            weight = balanced_weight(weight, layers[name], factors)
        records[name], weights[name] = _nearest(weight, layers[name], settings, compat=compat)
        if compat and layers[name].type.startswith("ConvTranspose"):
            # The reference calibrates these with their float weight; by default they are rounded
            # like all others, so that statistics see the same error (D4).
            weights[name] = weight
        if factors:
            records[name] = replace(records[name], tensor_balance_factor=factors)
            weights[name] = weights[name].to(stored.dtype)
        emit(on_event, Progress("weights", done + 1, len(names)))
    # The reference forgets to record the mode, so that its dequantisation stays exact (D20).
    if config.fakequant_precision_mode != "DEFAULT" and not compat:
        mode = config.fakequant_precision_mode
        records = {n: replace(r, fakequant_precision_mode=mode) for n, r in records.items()}
    return WeightResult(records, weights)


def with_room_for_bias(
    layer: nn.Module, info: LayerInfo, record: LayerRecord, fake: Tensor
) -> tuple[LayerRecord, Tensor]:
    """``record``, and ``fake`` rounded anew, with every channel's bias code within int32.

    A channel that training has all but switched off (a batch norm with a gamma near 0) has weights
    so small that its bias does not fit at their scale. There the bias is all that is left of the
    channel: a coarser scale costs nothing, an error at export the whole layer. ``record`` holds
    ``scale_d``. Records with one scale are left alone, as it is the other channels', too.
    """
    bias = getattr(layer, "bias", None)
    if len(record.scale_w) < 2 or not isinstance(bias, Tensor) or record.scale_d is None:
        return record, fake
    limit = record.scale_d * BIAS_CODE_LIMIT
    if float(bias.detach().abs().amax()) <= limit * min(record.scale_w):
        return record, fake
    scale = torch.tensor(record.scale_w, device=fake.device)
    needed = bias.detach().double().abs() / limit
    needed = needed.to(scale)
    if not bool((scale < needed).any()):
        return record, fake
    scale = torch.maximum(scale, needed)
    transposed = info.type.startswith("ConvTranspose")
    rows = to_channel_first(fake, transposed, info.groups)
    rows = fake_quantize_weight(rows, scale, record.wts_bits, 0)
    rounded = from_channel_first(rows, transposed, info.groups).to(fake.dtype).contiguous()
    return replace(record, scale_w=tuple(scale.tolist())), rounded


def all_with_room_for_bias(
    captured: Captured,
    plan: FoldPlan,
    records: Mapping[str, LayerRecord],
    weights: Mapping[str, Tensor],
) -> tuple[dict[str, LayerRecord], dict[str, Tensor]]:
    """``with_room_for_bias`` for every layer of a trained network, as it is after folding."""
    folded = folded_copy(captured, plan)
    found = {
        name: with_room_for_bias(
            folded.get_submodule(name), captured.layers[name], record, weights[name]
        )
        for name, record in records.items()
    }
    return {n: r for n, (r, _) in found.items()}, {n: w for n, (_, w) in found.items()}


def balanced_weight(weight: Tensor, info: LayerInfo, factors: tuple[float, ...]) -> Tensor:
    """The weight times the layer's DMQ factors, in float32."""
    return balance_weight(
        weight,
        torch.tensor(factors, device=weight.device),
        transposed=info.type.startswith("ConvTranspose"),
        groups=info.groups,
    )


def _nearest(
    weight: Tensor, info: LayerInfo, settings: WeightParams, *, compat: bool
) -> tuple[LayerRecord, Tensor]:
    """Rounded to nearest at the scale of ARQ or, for AdaRound to start from, of KL (section 8)."""
    find_scale = kl_scale if settings.wts_algo == "ada_quantize" else arq_scale
    transposed = info.type.startswith("ConvTranspose")
    rows = to_channel_first(weight, transposed, info.groups)
    axis = 0 if settings.channel_wise else None
    scale = find_scale(rows, settings.num_bits, axis, compat=compat)
    fake = fake_quantize_weight(rows, scale, settings.num_bits, axis)
    fake = from_channel_first(fake, transposed, info.groups)
    scales = tuple(scale.tolist())
    record = LayerRecord(
        scale_w=scales, offset_w=(0,) * len(scales), wts_type=f"INT{settings.num_bits}"
    )
    return record, fake.to(weight.dtype).contiguous()
