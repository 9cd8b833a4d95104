"""A task that a small decoder learns in half a minute: say a row of numbers again, in order.

The model reads the numbers and a separator, and then names the smallest, the next one, and so on.
Each answer needs a look at all the numbers, so attention has to work, and a wrong one shows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from workbench.zoo.decoder import Decoder, DecoderConfig, DecoderLayer
from workbench.zoo.weights_io import read_weights

NUMBERS = 16
LENGTH = 8
SEPARATOR = NUMBERS
_BATCH = 64
_RATE = 8e-3


def sequences(count: int, seed: int) -> Tensor:
    """[count, 2 LENGTH + 1]: numbers, the separator, the numbers in order."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(NUMBERS, (count, LENGTH), generator=generator)
    separator = torch.full((count, 1), SEPARATOR)
    return torch.cat([numbers, separator, numbers.sort(1).values], 1)


def train_sorter(steps: int = 600, seed: int = 0, config: DecoderConfig | None = None) -> Decoder:
    """A decoder that sorts, in eval mode; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Decoder(config or DecoderConfig(vocabulary=NUMBERS + 2))
    optimizer = torch.optim.AdamW(model.parameters(), _RATE, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            # A short warm-up, then down to nothing along a cosine.
            group["lr"] = _RATE * min(1.0, step / 30) * (1 + math.cos(math.pi * step / steps)) / 2
        loss = sorting_loss(model, sequences(_BATCH, seed * 1_000_003 + step))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval().requires_grad_(False)


def trained_sorter() -> Decoder:
    """What ``train_sorter()`` gave; its weights ship with the package."""
    with torch.random.fork_rng(devices=[]):
        model = Decoder(DecoderConfig(vocabulary=NUMBERS + 2))
    model.load_state_dict(read_weights("sorter"))
    return model.eval().requires_grad_(False)


def sorting_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens[:, :-1])[:, LENGTH:]
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, LENGTH + 1 :].flatten())


@torch.no_grad()
def sorting_accuracy(model: nn.Module, count: int = 2000, seed: int = 10**9) -> float:
    """Share of the sorted numbers that are named right, in per cent, each after the right ones."""
    right = 0
    for tokens in sequences(count, seed).split(500):  # type: ignore[no-untyped-call]
        found = model(tokens[:, :-1])[:, LENGTH:].argmax(-1)
        right += int((found == tokens[:, LENGTH + 1 :]).sum())
    return 100.0 * right / (count * LENGTH)


def grow_outliers(model: Decoder, channels: int = 3, factor: float = 32.0) -> None:
    """Give the inputs of each block outlier channels, in place, without changing the function.

    Large language models grow them in training; here the gains of a few channels of each norm are
    multiplied by a power of two, and the columns that read them divided by it.
    """
    for number, layer in enumerate(model.model.layers):
        assert isinstance(layer, DecoderLayer)
        chosen = [(7 * number + 11 * i) % model.config.width for i in range(channels)]
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            with torch.no_grad():
                norm.weight[chosen] *= factor
                for reader in readers:
                    reader.weight[:, chosen] /= factor
