"""Counting in cells against numpy, on one and more threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.engine.algorithms.cell_counts import count_cells


@pytest.mark.parametrize("count", [1, 1000, 262_143, 700_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_counts_equal_numpys(threads: int, count: int, dtype: torch.dtype) -> None:
    x = torch.randn(count, generator=torch.Generator().manual_seed(count)).to(dtype)
    # A power of two: the product is exact, so that only the rounding of the sum is float32's.
    place = (x.float() * 64 + 100).clamp(0, 199).numpy().astype(np.int64)
    found = count_cells(x, 100.0, 64.0, 200, clamp=True)
    assert found.tolist() == np.bincount(place, minlength=200).tolist()


@settings(deadline=None, max_examples=40)
@given(
    codes=st.lists(st.integers(0, 9), min_size=1, max_size=50),
    repeats=st.sampled_from([1, 40_000]),
)
def test_without_clamping(codes: list[int], repeats: int) -> None:
    x = torch.tensor(codes, dtype=torch.float32).repeat(repeats) + 0.5
    wanted = [codes.count(i) * repeats for i in range(10)]
    assert count_cells(x, 0.0, 1.0, 10, clamp=False).tolist() == wanted
