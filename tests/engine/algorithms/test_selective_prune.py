"""2:4 masks against the rule written out for one row (chapter 40 section 4.1)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.engine.algorithms import selective_prune
from workbench.engine.algorithms.selective_prune import is_two_of_four, selective_mask


def by_hand(row: list[float]) -> list[bool]:
    """Of each group of four, padded with what is smaller than anything, the two largest."""
    kept = [False] * len(row)
    for start in range(0, len(row), 4):
        group = [(abs(row[i]) if i < len(row) else -1.0, -i) for i in range(start, start + 4)]
        for _, negative in sorted(group, reverse=True)[:2]:
            if -negative < len(row):
                kept[-negative] = True
    return kept


@pytest.mark.parametrize(
    ("row", "mask"),
    [
        ([1, 2, 3], [0, 1, 1]),
        ([1, 2], [1, 1]),
        ([5], [1]),
        ([1, 2, 3, 4, 5], [0, 0, 1, 1, 1]),
        ([4, 1, 2, 3, 0, 7], [1, 0, 0, 1, 1, 1]),
        ([1, 2, 3, 4, 5, 6, 7], [0, 0, 1, 1, 0, 1, 1]),
        ([-4, 3, -2, 1], [1, 1, 0, 0]),
        ([0, 0, 0, 0], [1, 1, 0, 0]),
        ([0, 0, 0], [1, 1, 0]),
        ([2, 2, 2, 3], [1, 0, 0, 1]),
    ],
)
def test_rows(row: list[float], mask: list[int]) -> None:
    assert selective_mask(torch.tensor([row], dtype=torch.float32), 1).int().tolist() == [mask]
    assert by_hand([float(v) for v in row]) == [bool(m) for m in mask]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=11))
@settings(max_examples=40, deadline=None)
def test_any_row(row: list[int]) -> None:
    weight = torch.tensor(row, dtype=torch.float32)
    assert selective_mask(weight.reshape(1, -1), 1)[0].tolist() == by_hand([float(v) for v in row])
    assert selective_mask(weight.reshape(-1, 1), 0)[:, 0].tolist() == by_hand(
        [float(v) for v in row]
    )


def test_groups_lie_along_the_input_channels() -> None:
    torch.manual_seed(0)
    for axis, shape in ((1, (3, 6, 2, 2)), (0, (6, 3, 2, 2)), (1, (4, 8))):
        weight = torch.randn(shape)
        mask = selective_mask(weight, axis)
        assert mask.shape == weight.shape
        assert mask.is_contiguous()
        lines = weight.movedim(axis, -1).reshape(-1, shape[axis]).tolist()
        wanted = [by_hand(line) for line in lines]
        assert mask.movedim(axis, -1).reshape(-1, shape[axis]).tolist() == wanted


def test_large_weights_are_worked_on_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weights = [(torch.randint(-3, 4, (9, 7, 3)).float(), 1), (torch.randn(6, 40), 1)]
    weights += [(weight.transpose(0, 1).contiguous(), 0) for weight, _ in weights]
    whole = [selective_mask(weight, axis) for weight, axis in weights]
    monkeypatch.setattr("workbench.engine.algorithms.selective_prune._CHUNK", 30)
    pieces = [selective_mask(weight, axis) for weight, axis in weights]
    assert all(torch.equal(one, other) for one, other in zip(whole, pieces, strict=True))


@given(
    shape=st.sampled_from([(3, 8, 5), (2, 7), (4, 4, 1, 3)]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_another_device_finds_the_same(
    shape: tuple[int, ...], dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(shape, generator=generator) * 2).round(decimals=seed % 3).to(dtype)
    mask = selective_mask(weight, 1)
    lines = weight.movedim(1, -1).reshape(-1, shape[1]).tolist()
    assert mask.movedim(1, -1).reshape(-1, shape[1]).tolist() == [by_hand(line) for line in lines]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selective_prune, "_ranks", selective_prune._ranks_on_device)
        assert torch.equal(selective_mask(weight, 1), mask)


def test_density() -> None:
    def density(layer: torch.nn.Module) -> float:
        axis = 0 if isinstance(layer, torch.nn.ConvTranspose2d) else 1
        return float(selective_mask(layer.weight, axis).float().mean())

    assert density(torch.nn.Conv2d(6, 8, 3)) == pytest.approx(2 / 3)
    assert density(torch.nn.Conv2d(8, 8, 3, groups=8)) == 1.0
    assert density(torch.nn.Linear(8, 4)) == 0.5
    assert density(torch.nn.ConvTranspose2d(8, 3, 3)) == 0.5


def test_the_check_sees_a_third_weight() -> None:
    weight = torch.randn(4, 8, 3, 3)
    mask = selective_mask(weight, 1)
    assert is_two_of_four(weight * mask, 1)
    assert not is_two_of_four(weight, 1)
    assert is_two_of_four(torch.randn(3, 2), 1)
