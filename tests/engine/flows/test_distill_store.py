from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workbench.engine.flows.distill_store import TensorStore, settled


def tensors() -> list[Tensor]:
    base = torch.randn(2, 3, 4, 5)
    return [
        base,
        base.to(memory_format=torch.channels_last),
        base.transpose(1, 3),
        base[:, :, ::2],
        base[:1].expand(4, 3, 4, 5),
        base.to(torch.bfloat16),
        base.half(),
        torch.arange(6).reshape(2, 3),
        torch.tensor(1.5),
        torch.empty(0, 3),
    ]


@pytest.mark.parametrize("mode", ["memory", "disk"])
def test_what_comes_back_is_what_went_in(mode: str, tmp_path: Path) -> None:
    store = TensorStore(mode, budget=0, folder=str(tmp_path))  # type: ignore[arg-type]
    values = tensors()
    for value in values:
        store.append("a", value)
    for number, value in enumerate(values):
        found = store.get("a", number)
        assert found.dtype == value.dtype
        assert torch.equal(found, value)
        assert found.stride() == settled(value).stride()
    assert store.has("a", len(values) - 1)
    assert not store.has("a", len(values))
    assert not store.has("b", 0)
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_a_copy_has_the_order_of_what_it_copies() -> None:
    value = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    copied = settled(value)
    assert copied.stride() == value.stride()
    copied.zero_()
    assert bool(value.any())


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    budget=st.integers(0, 600),
)
def test_memory_stays_within_the_budget(sizes: list[int], budget: int) -> None:
    store = TensorStore("auto", budget=budget)
    try:
        for number, size in enumerate(sizes):
            store.append(f"{number % 3}", torch.full((size,), float(number)))
            in_memory = sum(t.nbytes for series in store._series.values() for t in series.in_memory)
            assert in_memory == store._used <= budget
        for number, size in enumerate(sizes):
            found = store.get(f"{number % 3}", number // 3)
            assert torch.equal(found, torch.full((size,), float(number)))
        store.drop("0")
        assert not store.has("0", 0)
    finally:
        store.close()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = TensorStore("disk", budget=0, folder=str(tmp_path / "file" / "below"))
    with pytest.raises(PermissionError, match="cache_dir"):
        store.append("a", torch.ones(1))
