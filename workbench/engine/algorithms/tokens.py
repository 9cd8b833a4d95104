"""What a Linear layer's inputs leave behind: bounded statistics over all their tokens.

Every leading axis of an input counts tokens; the last one, of length K, holds the features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.engine.errors import WrongState, WrongType, WrongValue

_SQUARE = 512


def as_tokens(x: Tensor, features: int) -> Tensor:
    """``x`` ``(..., K)`` detached as float32 ``(T, K)``.

    Errors: ``TypeError`` for integers, ``ValueError`` when the last axis is not ``features`` long.
    """
    if not x.is_floating_point():
        raise WrongType(f"an activation of dtype {x.dtype} cannot be calibrated on")
    if x.dim() == 0 or x.shape[-1] != features:
        raise WrongValue(f"an input has shape {list(x.shape)}; allowed: (..., {features})")
    return x.detach().reshape(-1, features).to(torch.float32)


class ChannelRanges:
    """Smallest, largest and mean absolute value of each feature; 2 K floats and K doubles."""

    def __init__(self, features: int, device: torch.device | None = None) -> None:
        self.low = torch.full((features,), torch.inf, device=device)
        self.high = torch.full((features,), -torch.inf, device=device)
        self.tokens = 0
        self._sum = torch.zeros(features, dtype=torch.float64, device=device)

    def update(self, x: Tensor) -> None:
        """Take in one input ``(..., K)``; ``RuntimeError`` when it holds inf or NaN."""
        tokens = as_tokens(x, self.low.numel())
        if not len(tokens):
            return
        low, high = torch.aminmax(tokens, dim=0)
        if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
            raise not_finite()
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        self._sum += tokens.abs().mean(0).double() * len(tokens)
        self.tokens += len(tokens)

    @property
    def mean_magnitude(self) -> Tensor:
        """float32 ``(K,)``."""
        self._check()
        return (self._sum / self.tokens).float()

    @property
    def magnitude(self) -> Tensor:
        """``max(|low|, |high|)``, float32 ``(K,)``."""
        self._check()
        return torch.maximum(self.low.abs(), self.high.abs())

    def _check(self) -> None:
        if not self.tokens:
            raise nothing_seen()


class TokenSample:
    """At most ``limit`` tokens, every one seen being kept with the same probability.

    Holds ``limit`` × K floats. Each token draws a key from ``generator`` and the smallest keys
    stay, so neither the length of a batch nor a token's position in its sequence matters.
    """

    def __init__(self, features: int, limit: int = 512, *, generator: torch.Generator) -> None:
        self._features, self._limit, self._generator = features, limit, generator
        self._keys: Tensor | None = None
        self._kept: Tensor | None = None

    def update(self, x: Tensor) -> None:
        """Take in one input ``(..., K)``."""
        tokens = as_tokens(x, self._features)
        drawn = torch.rand(len(tokens), generator=self._generator).to(x.device)
        keys, index = torch.topk(drawn, min(self._limit, len(drawn)), largest=False)
        rows = tokens[index]
        if self._keys is not None and self._kept is not None:
            keys, rows = torch.cat([self._keys, keys]), torch.cat([self._kept, rows])
            keys, index = torch.topk(keys, min(self._limit, len(keys)), largest=False)
            rows = rows[index]
        self._keys, self._kept = keys, rows

    @property
    def values(self) -> Tensor:
        """float32 ``(T, K)``; ``RuntimeError`` when nothing was seen."""
        if self._kept is None or not len(self._kept):
            raise nothing_seen()
        return self._kept


class InputGram:
    """``2 / n Σ XᵀX`` over all inputs, n counting samples: GPTQ's H, K × K floats.

    Accumulated in float32: the rounding of T tokens summed in blocks is about 1e-6 of the diagonal,
    ten thousand times less than the damping adds, at half the time and memory of float64. Chapter
    25 section 7.4.
    """

    def __init__(self, features: int, device: torch.device | None = None) -> None:
        self._sum = torch.zeros(features, features, device=device)
        self.samples = 0

    def update(self, x: Tensor) -> None:
        """Take in one input ``(B, ..., K)`` (two axes: one sample).

        Errors: ``RuntimeError`` when it holds inf or NaN, or squares that overflow.
        """
        features = len(self._sum)
        tokens = as_tokens(x, features)
        # Symmetric: the squares under the diagonal are the transposes of those above.
        for start in range(0, features, _SQUARE):
            stop = min(start + _SQUARE, features)
            self._sum[start:stop, start:].addmm_(tokens[:, start:stop].t(), tokens[:, start:])
        if not bool(torch.isfinite(self._sum.diagonal()).all()):
            raise not_finite()
        self.samples += x.shape[0] if x.dim() > 2 else 1

    @property
    def hessian(self) -> Tensor:
        """float32 ``(K, K)``; ``RuntimeError`` when nothing was seen."""
        if not self.samples:
            raise nothing_seen()
        for start in range(0, len(self._sum), _SQUARE):
            stop = min(start + _SQUARE, len(self._sum))
            # In place: a temporary would be as large as the statistics.
            self._sum[stop:, start:stop].copy_(self._sum[start:stop, stop:].t())
            square = self._sum[start:stop, start:stop]
            square.copy_(square.triu() + square.triu(1).t())
        return self._sum * (2.0 / self.samples)


def not_finite() -> WrongState:
    return WrongState("an activation holds inf or NaN", hint="Check the calibration data.")


def nothing_seen() -> WrongState:
    return WrongState("no batch was seen", hint="Run at least one batch through the model.")
