"""The largest values of a stream, against sorting it."""

from __future__ import annotations

import pytest
import torch

from workbench.engine.algorithms.top_values import ROW, TopValues, row_extremes

CAP = 1.5


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("cap", [CAP, 9.0], ids=["many rows reach the cap", "few rows do"])
def test_the_largest_of_several_blocks(sign: int, cap: float) -> None:
    draw = torch.Generator().manual_seed(3)
    blocks = [
        torch.randn(count, generator=draw).clamp(-cap, cap) for count in (40 * ROW, 70 * ROW + 5)
    ]
    if cap > CAP:
        blocks[0][7] = sign * cap
    top = TopValues(sign)
    for block in blocks:
        top.add(block, row_extremes(block)[sign > 0], keep=20)
    wanted = torch.cat(blocks).mul(sign).sort(descending=True).values * sign
    for k in (1, 2, 20):
        assert top.kth(k) == float(wanted[k - 1])
    assert top.kth(41) is None
