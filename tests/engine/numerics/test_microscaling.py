import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from number_lines import as_bits

from workbench.engine.numerics.element import Blocks
from workbench.engine.numerics.microscaling import MXFP4, MXFP8, Microscaling, pair_scales

FP4 = [Fraction(v) / 2 for v in (0, 1, 2, 3, 4, 6, 8, 12)]
FP8 = [Fraction(m, 8) / 64 for m in range(8)]
FP8 += [(1 + Fraction(m, 8)) * Fraction(2) ** (e - 7) for e in range(1, 16) for m in range(8)]
FP8 = FP8[:127]


def element(value: Fraction, magnitudes: list[Fraction]) -> int:
    """Nearest index; of two the even one; beyond the end the last."""
    return min(range(len(magnitudes)), key=lambda i: (abs(abs(value) - magnitudes[i]), i % 2))


def reference(block: list[float], four: bool) -> tuple[list[int], int, list[float]]:
    """Codes, scale byte and values of one block, in exact fractions."""
    if not all(math.isfinite(v) for v in block):
        return [0] * len(block), 255, [math.nan] * len(block)
    largest = max(abs(v) for v in block)
    e = 0
    if largest:
        mantissa, exponent = math.frexp(largest)
        floor_log2 = exponent - 1
        e = floor_log2 - (2 if four else 8)
        if four and mantissa * 2 > 1.75:
            e += 1
        e = min(max(e, -127), 127)
    magnitudes, sign_bit = (FP4, 8) if four else (FP8, 128)
    codes, values = [], []
    for v in block:
        index = element(Fraction(v) / Fraction(2) ** e, magnitudes)
        codes.append(index + sign_bit * (math.copysign(1, v) < 0))
        exact = float(magnitudes[index] * Fraction(2) ** e)
        values.append(math.copysign(min(exact, float(np.finfo(np.float32).max)), v))
    return codes, e + 127, values


def raw(codes: torch.Tensor) -> list[int]:
    return codes.view(torch.uint8).flatten().tolist()


def check(values: list[float], microscaling: Microscaling) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    values = x.tolist()
    parts = [
        reference(values[i : i + 32], microscaling is MXFP4) for i in range(0, len(values), 32)
    ]
    blocks = microscaling.encode(x)
    assert blocks.codes.shape == x.shape
    assert raw(blocks.codes) == [code for codes, _, _ in parts for code in codes]
    assert blocks.scales.dtype == torch.uint8
    assert blocks.scales.tolist() == [scale for _, scale, _ in parts]
    expected = torch.tensor([v for *_, vs in parts for v in vs], dtype=torch.float32)
    for result in (microscaling.decode(blocks), microscaling.round(x)):
        assert torch.equal(result.isnan(), expected.isnan())
        assert as_bits(result.nan_to_num(7.0)) == as_bits(expected.nan_to_num(7.0))


@pytest.mark.parametrize("microscaling", [MXFP4, MXFP8])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_against_a_scalar_reference(microscaling: Microscaling, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 70))
    top = data.draw(st.sampled_from([1e-44, 1e-39, 1e-37, 1e-3, 1.0, 1e4, 3.4e38]))
    top = float(np.float32(top))
    numbers = st.floats(-top, top, width=32)
    check(data.draw(st.lists(numbers, min_size=size, max_size=size)), microscaling)


@pytest.mark.parametrize("microscaling", [MXFP4, MXFP8])
def test_maxima_over_all_exponents_and_midpoints(microscaling: Microscaling) -> None:
    """A maximum with 15 neighbours at sixteenths of it: many ties, both ends of float32."""
    values = []
    for exponent in (-149, -140, -128, -127, -126, -125, -124, -120, -3, 0, 5, 120, 126, 127):
        for m in (0, 1, 64, 95, 96, 97, 111, 127):
            top = (1 + m / 128) * 2.0**exponent
            values += [top * k / 16 for k in range(16, 0, -1)] + [0.0, -0.0] + [-top / 7] * 14
    check(values, microscaling)


def test_documented_scales_of_mxfp4() -> None:
    for largest, e, code, value in (
        (1.0, -2, 6, 1.0),
        (1.75, -2, 7, 1.5),
        (1.76, -1, 6, 2.0),
        (7.0, 0, 7, 6.0),
        (7.1, 1, 6, 8.0),
    ):
        blocks = MXFP4.encode(torch.tensor([largest]))
        assert (blocks.scales.item() - 127, blocks.codes.item()) == (e, code)
        assert MXFP4.decode(blocks).item() == value
    assert MXFP4.encode(torch.ones(32)).scales.tolist() == [125]
    assert MXFP4.encode(torch.zeros(32)).scales.tolist() == [127]


def test_mxfp8_clips_what_the_element_cannot_hold() -> None:
    x = torch.tensor([511.0, 450.0, 448.0, -500.0])
    blocks = MXFP8.encode(x)
    assert blocks.scales.item() == 127
    assert MXFP8.decode(blocks).tolist() == [448.0, 448.0, 448.0, -448.0]
    assert blocks.codes.dtype == torch.float8_e4m3fn


@pytest.mark.parametrize("microscaling", [MXFP4, MXFP8])
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
def test_a_block_with_nan_or_inf_is_nan_and_its_neighbour_is_not(
    microscaling: Microscaling, bad: float
) -> None:
    x = torch.ones(64)
    x[3] = bad
    blocks = microscaling.encode(x)
    assert blocks.scales[0] == 0xFF and blocks.scales[1] != 0xFF
    assert raw(blocks.codes)[:32] == [0] * 32
    for values in (microscaling.decode(blocks), microscaling.round(x)):
        assert values[:32].isnan().all() and (values[32:] == 1).all()


@pytest.mark.parametrize("microscaling", [MXFP4, MXFP8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_twice_changes_nothing_more(
    microscaling: Microscaling, dtype: torch.dtype
) -> None:
    x = torch.randn(16, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = x * torch.logspace(-2, 2, 16)[:, None].to(dtype)
    once = microscaling.round(x)
    assert once.dtype == dtype
    assert torch.equal(microscaling.round(once), once)
    assert torch.equal(microscaling.decode(microscaling.encode(x), dtype), once)


@pytest.mark.parametrize("microscaling", [MXFP4, MXFP8])
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_blocks_along_any_axis(microscaling: Microscaling, axis: int) -> None:
    x = torch.randn(40, 33, 35, generator=torch.Generator().manual_seed(axis))
    blocks = microscaling.encode(x, axis)
    moved = microscaling.encode(x.movedim(axis, -1).contiguous())
    assert raw(blocks.codes.movedim(axis, -1).contiguous()) == raw(moved.codes)
    assert torch.equal(blocks.scales.movedim(axis, -1), moved.scales)
    assert torch.equal(microscaling.scales(x, axis), blocks.scales)
    values = microscaling.decode(blocks)
    assert torch.equal(values, microscaling.round(x, axis))
    assert torch.equal(values.movedim(axis, -1), microscaling.decode(moved))


def test_scales_from_outside() -> None:
    x = torch.tensor([[1.0, 3.0, 100.0]])
    scales = torch.tensor([[128]], dtype=torch.uint8)
    blocks = MXFP4.encode(x, scales=scales)
    assert torch.equal(blocks.scales, scales)
    assert MXFP4.decode(blocks).tolist() == [[1.0, 3.0, 12.0]]
    assert MXFP4.round(x, scales=scales).tolist() == [[1.0, 3.0, 12.0]]
    # One column at a time, with the scale of the block it belongs to.
    column = MXFP4.round(x[:, 1:2], scales=scales)
    assert column.tolist() == [[3.0]]
    with pytest.raises(ValueError, match=r"\[1, 1\]"):
        MXFP4.round(x, scales=scales[0])
    with pytest.raises(ValueError, match="uint8"):
        MXFP4.decode(Blocks(blocks.codes, scales.int()))


def test_finite_input_never_becomes_infinite() -> None:
    x = torch.tensor([65504.0, 1.0], dtype=torch.float16)
    assert MXFP4.round(x)[0].item() == 65504.0  # 4 times 2^14 is beyond float16
    assert MXFP4.decode(MXFP4.encode(torch.tensor([3.2e38]))).isfinite().all()


def test_pairs_of_scales_and_sizes() -> None:
    blocks = MXFP8.encode(torch.randn(3, 128))
    assert pair_scales(blocks.scales).shape == (3, 2, 2)
    with pytest.raises(ValueError, match="3 blocks of 32"):
        pair_scales(MXFP8.encode(torch.randn(3, 96)).scales)
    with pytest.raises(ValueError, match="axis 2"):
        MXFP8.encode(torch.ones(3, 3), 2)
    with pytest.raises(ValueError, match="axis"):
        MXFP8.encode(torch.tensor(1.0))
    with pytest.raises(TypeError):
        MXFP8.encode(torch.ones(3, dtype=torch.float64))
    assert MXFP4.encode(torch.ones(2, 0)).scales.shape == (2, 0)
    assert (MXFP4.bits, MXFP8.bits) == (4.25, 8.25)
