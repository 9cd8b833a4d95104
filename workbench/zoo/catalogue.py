"""What the examples are called, what they are made of and how they are judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from workbench.zoo.architectures import (
    DigitsAutoencoder,
    DigitsMobileNet,
    DigitsResNet,
    DigitsViT,
)


@dataclass(frozen=True)
class Entry:
    """One example: how to build it untrained, its task (see `data.digits`) and metric."""

    title: str
    description: str
    build: Callable[[], nn.Module]
    task: str
    metric: str


CATALOGUE: dict[str, Entry] = {
    "digits-resnet": Entry(
        "ResNet-20 on digits",
        "A narrow ResNet-20. Everything works at once: INT8 costs next to nothing.",
        DigitsResNet,
        "classify",
        "top1",
    ),
    "digits-mobilenet": Entry(
        "MobileNet on digits",
        "Depthwise-separable convolutions. One weight scale for a whole layer hurts; "
        "channels of depthwise layers can only be pruned together with their neighbours'.",
        DigitsMobileNet,
        "classify",
        "top1",
    ),
    "digits-mobilenet-hard": Entry(
        "MobileNet on digits, unbalanced",
        "The same function as digits-mobilenet, with channel scales unbalanced across a few "
        "layers. INT8 fails until those layers are rolled back or balanced.",
        DigitsMobileNet,
        "classify",
        "top1",
    ),
    "digits-vit": Entry(
        "Vision transformer on digits",
        "A tiny vision transformer: Linear, LayerNorm, attention and GELU.",
        DigitsViT,
        "classify",
        "top1",
    ),
    "digits-autoencoder": Entry(
        "Autoencoder on digits",
        "Conv2d down, ConvTranspose2d up; no labels, judged by PSNR against its own input.",
        DigitsAutoencoder,
        "reconstruct",
        "psnr",
    ),
}


def entry(name: str) -> Entry:
    """The entry called ``name``; raises `ValueError` with the names there are."""
    try:
        return CATALOGUE[name]
    except KeyError:
        known = ", ".join(CATALOGUE)
        raise ValueError(f"there is no example called {name!r}; choose one of: {known}") from None
