"""Chapter 30 sections 5.2 and 12 idea 5, against the search written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.engine.algorithms.clip_initialiser import ClipInitialiser


def brute_force(data: np.ndarray, bits: int) -> tuple[float, float]:
    n = len(data)
    k = max(1, n - int(0.999999 * n))
    high, low = max(0.0, np.sort(data)[-k]), min(0.0, np.sort(data)[k - 1])
    reach = np.float32(max(abs(high), abs(low)))
    divisor = np.float32(2 ** (bits - 1) - (0 if abs(high) < abs(low) else 1))
    best = (np.inf, 1.0)
    for ratio in torch.arange(0.7, 1.3, 0.01).numpy():
        scale = ratio * reach / divisor
        kept = np.clip(data.astype(np.float64), -ratio * reach, ratio * reach)
        error = float(((np.rint(kept / scale) * scale - data) ** 2).mean())
        if error < best[0]:
            best = (error, float(scale))
    return (2 ** (bits - 1) - 1) * best[1], -(2 ** (bits - 1)) * best[1]


def test_the_table() -> None:
    ramp = ClipInitialiser(8, 1)
    ramp.update(torch.linspace(-1, 3, 1001))
    assert ramp.result() == pytest.approx((3.0, -3.0236220), rel=1e-6)
    zeros = ClipInitialiser(8, 1)
    zeros.update(torch.zeros(10))
    assert zeros.result() == (127, -128)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", ["normal", "relu", "negative"])
def test_small_data_is_searched_exactly(bits: int, shape: str) -> None:
    generator = torch.Generator().manual_seed(7)
    batches = [torch.randn(2, 3, 40, generator=generator) for _ in range(2)]
    change = {"normal": lambda x: x, "relu": torch.relu, "negative": lambda x: -x.abs() - 0.1}
    batches = [change[shape](batch) for batch in batches]
    initialiser = ClipInitialiser(bits, 2)
    for batch in batches:
        assert not initialiser.done
        initialiser.update(batch)
    assert initialiser.done
    data = torch.cat([batch.flatten() for batch in batches]).numpy()
    assert initialiser.result() == pytest.approx(brute_force(data, bits), rel=1e-6)


def test_large_data_is_counted_in_bounded_memory() -> None:
    generator = torch.Generator().manual_seed(8)
    data = torch.randn(200_000, generator=generator)
    initialiser = ClipInitialiser(8, 1, byte_budget=1 << 12)
    initialiser.update(data)
    found, exact = initialiser.result(), brute_force(data.numpy(), 8)

    def error(high: float) -> float:
        scale = high / 127
        x = data.double().numpy()
        return float(((np.clip(np.rint(x / scale), -128, 127) * scale - x) ** 2).mean())

    assert error(found[0]) <= error(exact[0]) * 1.002


def test_bad_data() -> None:
    with pytest.raises(RuntimeError, match="inf or NaN"):
        ClipInitialiser(8, 1).update(torch.tensor([1.0, float("nan")]))
    with pytest.raises(TypeError, match="int64"):
        ClipInitialiser(8, 1).update(torch.tensor([1, 2]))
    with pytest.raises(RuntimeError, match="no batch"):
        ClipInitialiser(8, 1).result()
