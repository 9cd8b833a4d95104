import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.engine.algorithms.kl import kl_scale


def table_weight() -> torch.Tensor:
    values = np.sin(0.61 * np.arange(512)) ** 3
    values[5] = 1.6
    return torch.tensor(values, dtype=torch.float32)


def brute_force(row: np.ndarray, bits: int) -> float:
    """Chapter 10 section 8.2, steps 1 to 5, with loops over bins and groups."""
    largest = float(np.abs(row).max())
    if largest == 0.0:
        return 1.0
    counts = [0.0] * 512
    for value in row.astype(np.float64):
        counts[min(511, int((value + largest) / (largest / 256)))] += 1
    groups = 2**bits - 1
    best = (math.inf, 0.0)
    for i in range(20):
        p = counts[i : 512 - i]
        n = len(p)
        p[0] += sum(counts[:i])
        p[-1] += sum(counts[512 - i :])
        q = [0.0] * n
        for j in range(groups):
            start = math.ceil(j * n / groups)
            end = n if j == groups - 1 else math.ceil((j + 1) * n / groups)
            filled = [k for k in range(start, end) if p[k] != 0]
            for k in filled:
                q[k] = sum(p[start:end]) / len(filled)
        smooth = []
        for histogram in (p, q):
            zeros = sum(v == 0 for v in histogram)
            share = 1e-4 * zeros / (n - zeros)
            filled_up = [1e-4 if v == 0 else v + share for v in histogram]
            smooth.append([v / sum(filled_up) for v in filled_up])
        divergence = sum(a * math.log(a / b) for a, b in zip(*smooth, strict=True))
        if divergence < best[0]:
            best = (divergence, largest * (1 - i / 256))
    return best[1] / 2 ** (bits - 1)


def test_table_per_tensor() -> None:
    assert kl_scale(table_weight(), 8, None).tolist() == pytest.approx([0.012451172], rel=1e-6)


def test_table_channel_wise() -> None:
    scales = kl_scale(table_weight().view(4, 128), 8, 0).tolist()
    assert scales == pytest.approx([0.012451172, 0.007780339, 0.007780812, 0.007812033], rel=1e-6)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    bits=st.sampled_from([4, 6, 7, 8]),
    size=st.integers(1, 400),
    power=st.sampled_from([1, 2, 3]),
)
def test_equals_loops_over_bins(seed: int, bits: int, size: int, power: int) -> None:
    generator = np.random.default_rng(seed)
    rows = (generator.standard_normal((3, size)) * generator.random((3, 1))).astype(np.float32)
    rows = rows**power
    wanted = [brute_force(row, bits) for row in rows]
    assert kl_scale(torch.from_numpy(rows), bits, 0).tolist() == pytest.approx(wanted, rel=1e-6)
    whole = brute_force(rows.reshape(-1), bits)
    assert kl_scale(torch.from_numpy(rows), bits, None).tolist() == pytest.approx([whole], rel=1e-6)


def test_channels_may_lie_on_any_axis() -> None:
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kl_scale(weight, 6, 1), kl_scale(weight.transpose(0, 1), 6, 0))


def test_an_empty_channel_gets_one() -> None:
    scales = kl_scale(torch.tensor([[0.0, 0.0], [0.5, -1.0]]), 8, 0)
    assert scales[0] == 1.0 and 0.9 / 128 < scales[1] <= 1 / 128


def test_refuses_what_cannot_be_quantised() -> None:
    with pytest.raises(RuntimeError, match="inf or NaN"):
        kl_scale(torch.tensor([[1.0, float("inf")]]), 8, 0)
    with pytest.raises(TypeError):
        kl_scale(torch.tensor([[1, 2]]), 8, 0)
