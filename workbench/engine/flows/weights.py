"""Weight calibration: the scale and the fake-quantised weight of every enabled layer.

Source: specification chapter 10 sections 3.3 (step 4) and 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from workbench.engine.algorithms.arq import (
    arq_scale,
    fake_quantize_weight,
    from_channel_first,
    to_channel_first,
)
from workbench.engine.events import CancelToken, OnEvent, Progress, check, emit
from workbench.engine.files.config import QuantConfig, WeightParams
from workbench.engine.files.record import LayerRecord
from workbench.engine.graph.layers import LayerInfo


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
    compat: bool = False,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> WeightResult:
    """Quantise the weights of ``folded``, which is not changed."""
    enabled = set(config.enabled())
    names = [name for name, _ in folded.named_modules() if name in enabled]
    records: dict[str, LayerRecord] = {}
    weights: dict[str, Tensor] = {}
    for done, name in enumerate(names):
        check(cancel)
        settings = config.layers[name].weight
        if settings is None or not layers[name].has_weight:
            records[name] = LayerRecord(scale_w=(1.0,), offset_w=(0,))
            continue
        weight = folded.get_submodule(name).get_parameter("weight").detach()
        records[name], weights[name] = _arq(weight, layers[name], settings, compat=compat)
        emit(on_event, Progress("weights", done + 1, len(names)))
    if config.fakequant_precision_mode != "DEFAULT":
        mode = config.fakequant_precision_mode
        records = {n: replace(r, fakequant_precision_mode=mode) for n, r in records.items()}
    return WeightResult(records, weights)


def _arq(
    weight: Tensor, info: LayerInfo, settings: WeightParams, *, compat: bool
) -> tuple[LayerRecord, Tensor]:
    """Section 8.1."""
    transposed = info.type.startswith("ConvTranspose")
    rows = to_channel_first(weight, transposed, info.groups)
    axis = 0 if settings.channel_wise else None
    scale = arq_scale(rows, settings.num_bits, axis, compat=compat)
    fake = fake_quantize_weight(rows, scale, settings.num_bits, axis)
    fake = from_channel_first(fake, transposed, info.groups)
    scales = tuple(scale.tolist())
    record = LayerRecord(
        scale_w=scales, offset_w=(0,) * len(scales), wts_type=f"INT{settings.num_bits}"
    )
    return record, fake.to(weight.dtype).contiguous()
