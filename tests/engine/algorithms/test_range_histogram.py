"""A histogram whose range grows, against sorting what it was given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.engine.algorithms.range_histogram import RangeHistogram


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.floats(1e-4, 5e3), min_size=1, max_size=4),
    shift=st.sampled_from([-3.0, 0.0, 3.0]),
    dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]),
    seed=st.integers(0, 100),
)
def test_every_value_is_counted_where_it_lies(
    sizes: list[float], shift: float, dtype: torch.dtype, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    histogram = RangeHistogram()
    blocks = [((torch.randn(3000, generator=draw) + shift) * size).to(dtype) for size in sizes]
    for block in blocks:
        histogram.add(block)
    x = np.sort(torch.cat(blocks).float().double().numpy())
    assert int(histogram.counts.sum()) + histogram.outside.numel() == histogram.total == len(x)
    # Places are rounded to float32: a value near a border may be counted next to it.
    slack = histogram.width * (0.51 + 2.0**-8) + 2.0**-22 * abs(x).max()
    for k in (1, 2, 100, len(x) // 2, len(x)):
        assert histogram.kth_smallest(k) == pytest.approx(float(x[k - 1]), abs=slack)
        assert histogram.kth_largest(k) == pytest.approx(float(x[-k]), abs=slack)


def test_a_few_outliers_cost_no_resolution() -> None:
    x = torch.randn(1 << 17, generator=torch.Generator().manual_seed(0))
    x[5000] = 1e6
    histogram = RangeHistogram()
    histogram.add(x)
    assert histogram.outside.tolist() == [1e6]
    assert histogram.width < 16 / 2**15
    assert histogram.counts.numel() <= 2**15 - 2


def test_the_grid_follows_values_far_beyond_it() -> None:
    histogram = RangeHistogram()
    histogram.add(torch.zeros(2000))
    histogram.add(torch.linspace(0, 100, 200_001))
    assert histogram.outside.numel() <= 1 << 16
    assert histogram.counts.numel() <= 2**15 - 2
    assert histogram.kth_largest(100_001) == pytest.approx(50, abs=2 * histogram.width)
