"""Small networks with one recurrent layer that is given its initial state, and data for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

INPUTS, HIDDEN, LENGTH = 6, 4, 5


class Recurrent(nn.Module):
    """``rnn`` (LSTM or GRU) and a Linear on its output; the last states are outputs as well."""

    def __init__(self, kind: str = "LSTM", batch_first: bool = True, **options: Any) -> None:
        super().__init__()
        self.kind = kind
        self.rnn = getattr(nn, kind)(INPUTS, HIDDEN, batch_first=batch_first, **options)
        self.fc = nn.Linear(HIDDEN * (2 if self.rnn.bidirectional else 1), 3)

    def forward(self, x: Tensor, h: Tensor, c: Tensor | None = None) -> tuple[Tensor, ...]:
        if self.kind == "LSTM":
            out, (h, c) = self.rnn(x, (h, c))
            return self.fc(out), h, c
        out, h = self.rnn(x, h)
        return self.fc(out), h


def model(kind: str = "LSTM", batch_first: bool = True, **options: Any) -> Recurrent:
    torch.manual_seed(0)
    return Recurrent(kind, batch_first, **options).eval()


def data(net: Recurrent, batch: int, seed: int = 1, length: int = LENGTH) -> tuple[Tensor, ...]:
    """One batch: the sequence and each initial state."""
    generator = torch.Generator().manual_seed(seed)
    rnn = net.rnn
    shape = (batch, length) if rnn.batch_first else (length, batch)
    states = rnn.num_layers * (2 if rnn.bidirectional else 1)
    x = torch.randn(*shape, INPUTS, generator=generator)
    count = 2 if net.kind == "LSTM" else 1
    return (
        x,
        *(torch.randn(states, batch, HIDDEN, generator=generator).tanh() for _ in range(count)),
    )
