"""Even out the channels between trained layers before the training begins.

One scale for a whole activation leaves few levels to channels that are small beside others, and
gradient steps of one size are slow to change that. Where a batch norm and a ReLU stand between two
convolutions it can be changed at once, without changing what the float model computes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import nn

from workbench.engine.algorithms.equalization import channel_exponents
from workbench.engine.files.retrain_config import RetrainConfig
from workbench.engine.flows.qat_layers import Treatment
from workbench.engine.flows.qat_state import wrappers
from workbench.engine.graph.capture import Captured
from workbench.engine.graph.chains import scalable_pairs

log = logging.getLogger("workbench.engine.flows.qat")


@torch.no_grad()
def equalize(
    model: nn.Module,
    captured: Captured,
    config: RetrainConfig,
    treatments: Mapping[str, Treatment],
) -> tuple[str, ...]:
    """Equalise the inputs of trained convolutions of ``model``, in place; the layers changed.

    A layer whose clip bounds the config gives is left alone: they are for its input as it is.
    """
    norms = {name: treatment.norm for name, treatment in treatments.items() if treatment.norm}
    layers = wrappers(model)
    changed = []
    for name, producer in scalable_pairs(captured, norms).items():
        if name not in layers or config.layers[name].data.clip_max is not None:
            continue
        norm, weight = layers[producer].bn_module, layers[name].weight
        assert norm is not None
        depthwise = captured.layers[name].depthwise
        exponents = channel_exponents(norm.weight, norm.bias, weight, depthwise=depthwise)
        if not bool(exponents.any()):
            continue
        factor = torch.exp2(exponents).to(weight.dtype)
        norm.weight.div_(factor)
        norm.bias.div_(factor)
        if depthwise:
            rows = factor.repeat_interleave(weight.shape[0] // factor.numel())
            weight.mul_(rows.reshape(-1, *[1] * (weight.dim() - 1)))
        else:
            weight.mul_(factor.reshape(1, -1, *[1] * (weight.dim() - 2)))
        changed.append(name)
    if changed:
        log.info("channels equalised before %s", ", ".join(changed))
    return tuple(changed)
