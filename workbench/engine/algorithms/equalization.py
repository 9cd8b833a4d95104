"""Cross-layer equalisation by powers of two, from a batch norm's parameters alone.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction"
(arXiv:1906.04721). Powers of two make it exact: no product changes in more than its exponent.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DEVIATIONS = 3.0
"""How far above its mean the values of a normalised channel are taken to reach."""

_WORTH = 2
"""Smallest exponent for which a layer is changed at all: channels a factor of 4 from the median."""

_MOST = 16


def channel_exponents(gamma: Tensor, beta: Tensor, weight: Tensor, *, depthwise: bool) -> Tensor:
    """``(C,)`` whole numbers e: divide channel c by ``2^e`` before the layer, multiply in it.

    ``gamma`` and ``beta`` ``(C,)``: the batch norm before the ReLU. ``weight``: that of the
    convolution after it, ``(Cout, C, k...)``, or ``(C * m, 1, k...)`` of a depthwise one, whose
    channels have weight scales of their own. All zero where the channels are even enough.
    """
    reach = beta.detach().float() + _DEVIATIONS * gamma.detach().float().abs()
    if depthwise:
        size = torch.ones_like(reach)
        wanted = reach
    else:
        size = weight.detach().float().transpose(0, 1).flatten(1).abs().amax(1)
        wanted = torch.sqrt(reach / size)
    used = (reach > 0) & (size > 0) & torch.isfinite(wanted)
    if not bool(used.any()):
        return torch.zeros_like(reach)
    exponents = torch.log2(wanted / wanted[used].median()).round().clamp(-_MOST, _MOST)
    exponents = torch.where(used, exponents, torch.zeros_like(exponents))
    return exponents if float(exponents.abs().max()) >= _WORTH else torch.zeros_like(exponents)
