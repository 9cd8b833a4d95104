from __future__ import annotations

from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.engine.algorithms.channel_choice import (
    balanced_scores,
    filter_rows,
    lowest,
    removed_count,
    unit_norms,
)

# Specification chapter 40 section 3.5: channels, ratio, aligned, groups, kept.
COUNTS = [
    (20, 0.25, False, 1, 15), (20, 0.25, True, 1, 16), (20, 0.05, True, 1, 20),
    (8, 0.5, True, 1, 8), (64, 0.3, True, 1, 48), (64, 0.3, False, 1, 45),
    (32, 0.45, True, 1, 32), (32, 0.5, True, 1, 16), (32, 0.6, True, 1, 16),
    (100, 0.2, True, 1, 80), (5, 0.5, False, 1, 3), (7, 0.5, False, 1, 3),
    (10, 0.25, False, 1, 8), (6, 0.25, False, 1, 4), (10, 0.35, False, 1, 6),
    (1, 0.9, False, 1, 1), (12, 0.5, False, 4, 4), (12, 0.9, False, 4, 4),
    (48, 0.5, True, 3, 30),
]  # fmt: skip


@pytest.mark.parametrize(("channels", "ratio", "aligned", "groups", "kept"), COUNTS)
def test_counts_of_the_specification(
    channels: int, ratio: float, aligned: bool, groups: int, kept: int
) -> None:
    assert channels - removed_count(channels, ratio, aligned=aligned, stride=groups) == kept


@settings(max_examples=40, deadline=None)
@given(
    per_group=st.integers(1, 64),
    groups=st.sampled_from([1, 2, 3, 4]),
    percent=st.integers(1, 99),
    aligned=st.booleans(),
)
def test_counts_by_the_law(per_group: int, groups: int, percent: int, aligned: bool) -> None:
    channels, ratio = per_group * groups, percent / 100
    keep = channels - round(channels * ratio)
    if aligned:
        keep = 16 * ceil(keep / 16) or 16
    if groups > 1:
        keep = groups * (keep // groups)
    keep = keep or groups
    expected = max(channels - keep, 0)
    assert removed_count(channels, ratio, aligned=aligned, stride=groups) == expected
    assert expected % groups == 0 and expected < channels


def test_heads_are_aligned_by_their_channels() -> None:
    # 12 heads of 8 channels: half leaves 6 heads, 48 channels, which is aligned already.
    assert removed_count(12, 0.5, aligned=True, unit_channels=8) == 6
    # 7 of 12 would be 56 channels: 64 is the next multiple of 16.
    assert removed_count(12, 0.4, aligned=True, unit_channels=8) == 4


def test_balanced_scores_add_up() -> None:
    norms = [np.array([5.0, 1, 10, 3]), np.array([1.0, 9, 0, 2])]
    scores = balanced_scores(norms, compat=False)
    assert scores == pytest.approx([4 / 9 + 1 / 9, 1, 1, 2 / 9 + 2 / 9])
    cells = [[0, 1, 2, 3]]
    assert lowest(scores, cells, 2) == (0, 3)
    assert lowest(balanced_scores(norms, compat=True), cells, 2) == (1, 3)


def test_equal_filters_say_nothing() -> None:
    norms = [np.full(4, 2.0), np.array([3.0, 1, 2, 4])]
    assert lowest(balanced_scores(norms, compat=False), [range(4)], 2) == (1, 2)
    assert lowest(balanced_scores(norms[:1], compat=False), [range(4)], 2) == (0, 1)


def test_every_cell_loses_the_same_share() -> None:
    scores = np.array([0.0, 1, 2, 3, 9, 8, 7, 6])
    assert lowest(scores, [range(4), range(4, 8)], 4) == (0, 1, 6, 7)
    # Six units and three: two of the first for one of the second.
    assert lowest(np.arange(9.0), [range(6), range(6, 9)], 3) == (0, 1, 6)


def test_norms_of_filters_and_of_heads() -> None:
    weight = torch.tensor([[3.0, 4], [0, 2], [6, 8], [1, 0]])
    one = unit_norms(filter_rows(weight, 0), np.array([0, 1, 2, -1]), 3)
    assert one == pytest.approx([5 / 2, 2 / 2, 10 / 2])
    pairs = unit_norms(filter_rows(weight, 0), np.array([0, 0, 1, 1]), 2)
    assert pairs == pytest.approx([29**0.5 / 4, 101**0.5 / 4])


def test_rows_of_a_grouped_transposed_kernel() -> None:
    # [in 4, out per group 2, 1]: outputs 0 and 1 read inputs 0 and 1, outputs 2 and 3 the others.
    weight = torch.arange(8.0).reshape(4, 2, 1)
    expected = torch.tensor([[0.0, 2], [1, 3], [4, 6], [5, 7]])
    assert torch.equal(filter_rows(weight, 1, groups=2), expected)
