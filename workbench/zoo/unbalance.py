"""Make a network hard to quantise without changing what it computes.

ReLU is positively homogeneous: a channel multiplied by k in front of it comes out multiplied
by k, and the next convolution can divide it out again. With k a power of two every product
is the same float, so the outputs stay the same bit for bit. One scale per tensor then has to
cover channels of very different ranges, and the small ones keep few of their 256 levels
(Nagel et al. 2019, arXiv:1906.04721, run the same step in the opposite direction).
"""

from __future__ import annotations

import torch
from torch import nn

from workbench.zoo.architectures import ConvBN, SeparableBlock

EXPONENTS: dict[str, tuple[int, ...]] = {
    "blocks.2": (0, 6),
    "blocks.5": (0, 7),
    "blocks.8": (0, 7),
    "blocks.11": (0, 6),
}
"""Per block of `DigitsMobileNet`: channel c between its two convolutions is multiplied by
2 to the power ``exponents[c % len(exponents)]``."""

HARD_LAYERS = tuple(f"{block}.pointwise.conv" for block in EXPONENTS)
"""The layers whose input became unbalanced; with these in float the rest quantises well."""


def unbalance(model: nn.Module) -> None:
    """Unbalance a `DigitsMobileNet` in place."""
    for name, exponents in EXPONENTS.items():
        block = model.get_submodule(name)
        if not isinstance(block, SeparableBlock):
            raise TypeError(f"{name} is {type(block).__name__}, not a SeparableBlock")
        rescale(block.depthwise, block.pointwise.conv, exponents)


@torch.no_grad()
def rescale(producer: ConvBN, consumer: nn.Conv2d, exponents: tuple[int, ...]) -> None:
    """Multiply the producer's output channels by powers of two, divide the consumer's inputs.

    Between the two there must be nothing but ReLU; the consumer must have one group.
    """
    channels = consumer.in_channels
    factor = torch.tensor([2.0 ** exponents[c % len(exponents)] for c in range(channels)])
    producer.bn.weight.mul_(factor)
    producer.bn.bias.mul_(factor)
    consumer.weight.div_(factor[None, :, None, None])
