"""The scale rule and weight formats, against formulas written out element by element."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.engine.algorithms import weight_formats
from workbench.engine.algorithms.scale_rule import Factors, fake_quantize, scale_and_offset
from workbench.engine.algorithms.weight_formats import WeightFormat
from workbench.engine.numerics.formats import ELEMENT_FORMATS
from workbench.engine.numerics.integer_formats import INT4, INT8

TARGETS = {"float4_e2m1": 6.0, "float8_e4m3fn": 448.0, "hifloat8": 16.0}


def integer_factors(values: list[float], bits: int, symmetric: bool) -> tuple[float, int]:
    """Chapter 25 section 6 for one group, in double precision."""
    high, low = max(values), min(values)
    if symmetric:
        larger_above = abs(high) >= abs(low)
        scale = abs(high) / (2 ** (bits - 1) - 1) if larger_above else abs(low) / 2 ** (bits - 1)
        return (scale if scale >= 1.192092896e-7 else 1.0), 0
    high, low = max(high, 0.0), min(low, 0.0)
    scale = (high - low) / (2**bits - 1)
    if scale < 1.192092896e-7:
        return 1.0, -(2 ** (bits - 1))
    return scale, round(-(2 ** (bits - 1)) - low / scale)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4),
    st.sampled_from([INT8, INT4]),
    st.booleans(),
)
def test_integer_factors_follow_the_rule(values, number_format, symmetric) -> None:
    x = torch.tensor(values)
    found = scale_and_offset(x.max(), x.min(), number_format, symmetric=symmetric)
    scale, offset = integer_factors(values, number_format.bits, symmetric)
    assert float(found.scale) == pytest.approx(scale, rel=1e-6)
    if symmetric:
        assert found.offset is None
    else:
        assert found.offset.dtype == torch.int32
        # The quotient may round the other way in single precision, at a half only.
        assert abs(int(found.offset) - offset) <= 1


def test_a_range_is_measured_on_its_own_side_and_guarded() -> None:
    def scale(high: float, low: float, symmetric: bool = True) -> Factors:
        return scale_and_offset(torch.tensor(high), torch.tensor(low), INT8, symmetric=symmetric)

    assert float(scale(127.0, -3.0).scale) == 1.0
    assert float(scale(3.0, -128.0).scale) == 1.0
    assert float(scale(-1.0, -64.0).scale) == 0.5
    assert float(scale(0.0, 0.0).scale) == 1.0
    flat = scale(0.0, 0.0, symmetric=False)
    assert (float(flat.scale), int(flat.offset)) == (1.0, -128)
    with pytest.raises(RuntimeError, match="not finite"):
        scale(math.inf, 0.0)
    with pytest.raises(RuntimeError, match="not finite"):
        scale(math.nan, 0.0, symmetric=False)
    with pytest.raises(ValueError, match="no offset"):
        scale_and_offset(
            torch.tensor(1.0), torch.tensor(0.0), ELEMENT_FORMATS["hifloat8"], symmetric=False
        )


def test_the_offset_is_added_before_rounding() -> None:
    x = torch.tensor([0.5, 1.5, -0.5])
    factors = Factors(torch.tensor(1.0), torch.tensor(3, dtype=torch.int32))
    # 3.5 -> 4, 4.5 -> 4, 2.5 -> 2; rounding first would give 0, 2 and 0.
    assert fake_quantize(x, factors, INT8).tolist() == [1.0, 1.0, -1.0]


@pytest.mark.parametrize(
    ("strategy", "group"), [("tensor", 80), ("channel", 80), ("group", 32), ("group", 48)]
)
@pytest.mark.parametrize("type_", ["int8", "int4", "hifloat8", "float8_e4m3fn", "float4_e2m1"])
def test_each_scale_belongs_to_its_elements(type_: str, strategy: str, group: int) -> None:
    weight = torch.randn(3, 80, generator=torch.Generator().manual_seed(1)) * 3
    weight[1] = -weight[1].abs()
    size = group if strategy == "group" else None
    number_format = WeightFormat(type_, True, strategy, size)
    quantized = number_format.quantize(weight)
    assert quantized.codes.shape == weight.shape
    assert quantized.codes.dtype == ELEMENT_FORMATS[type_].storage
    values = number_format.dequantize(quantized)
    assert torch.equal(values, number_format.fake_quantize(weight))
    scales = quantized.factors.scale
    groups = math.ceil(80 / group)
    assert scales.shape == {"tensor": (1, 1), "channel": (3, 1), "group": (3, groups, 1)}[strategy]
    for row in range(3):
        for start in range(0, 80, group):
            part = slice(start, start + group)
            shared = {
                "tensor": weight.flatten(),
                "channel": weight[row],
                "group": weight[row, part],
            }[strategy].tolist()
            if type_ in TARGETS:
                scale = max(abs(v) for v in shared) / TARGETS[type_]
            else:
                # The tail of the last group is zero.
                padded = [*shared, 0.0]
                scale, _ = integer_factors(padded, {"int8": 8, "int4": 4}[type_], True)
            found = scales.flatten()
            index = {"tensor": 0, "channel": row, "group": row * groups + start // group}[strategy]
            assert float(found[index]) == pytest.approx(scale, rel=1e-6)
            rounded = ELEMENT_FORMATS[type_].round(weight[row, part] / scale) * scale
            assert (values[row, part] - rounded).abs().max() <= 1e-5


def test_block_formats_bring_their_scales_and_factors_may_be_given() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(3)).bfloat16()
    blocks = WeightFormat("mxfp4_e2m1", True, "group", 32)
    quantized = blocks.quantize(weight)
    assert quantized.factors.scale.dtype == torch.uint8
    assert quantized.factors.scale.shape == (4, 2)
    assert torch.equal(blocks.dequantize(quantized, torch.bfloat16), blocks.fake_quantize(weight))
    coarse = Factors(torch.full((1, 1), 0.25))
    moved = WeightFormat("int8", True, "tensor").fake_quantize(weight, coarse)
    assert torch.equal(moved.float(), (weight.float() / 0.25).round() * 0.25)
    kernel = torch.randn(4, 3, 2, 2)
    values = WeightFormat("int8").fake_quantize(kernel)
    assert values.shape == kernel.shape
    flat = WeightFormat("int8").fake_quantize(kernel.reshape(4, -1))
    assert torch.equal(values.reshape(4, -1), flat)


def test_what_is_no_format_is_refused() -> None:
    for arguments in (
        ("int5",),
        ("int8", True, "row"),
        ("int8", True, "group"),
        ("int8", True, "channel", 32),
        ("int8", True, "group", 0),
        ("mxfp4_e2m1", True, "group", 64),
        ("mxfp8_e4m3fn",),
    ):
        with pytest.raises(ValueError):
            WeightFormat(*arguments)
    for bad in (math.nan, math.inf):
        weight = torch.ones(2, 64)
        weight[1, 3] = bad
        for number_format in (
            WeightFormat("int8"),
            WeightFormat("mxfp4_e2m1", True, "group", 32),
            WeightFormat("hifloat8", True, "tensor"),
        ):
            with pytest.raises(RuntimeError, match="inf or NaN"):
                number_format.factors(weight)
    with pytest.raises(ValueError, match="two axes"):
        WeightFormat("int8").factors(torch.ones(3))


@pytest.mark.parametrize(
    "kind",
    [
        WeightFormat("int4", False, "group", 24),
        WeightFormat("int8", True, "tensor"),
        WeightFormat("hifloat8", True, "channel"),
        WeightFormat("mxfp4_e2m1", True, "group", 32),
    ],
    ids=lambda kind: f"{kind.type}-{kind.strategy}",
)
def test_rows_taken_together_or_apart_are_the_same(
    kind: WeightFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(7, 64, generator=torch.Generator().manual_seed(5)).bfloat16()
    whole = kind.quantize(weight)
    rounded = kind.fake_quantize(weight), kind.fake_quantize(weight, dtype=torch.float32)
    values = kind.dequantize(whole)
    monkeypatch.setattr(weight_formats, "_CHUNK", 2 * 64)
    apart = kind.quantize(weight)
    assert [part.stop - part.start for part in weight_formats.row_chunks(weight)] == [2] * 4
    assert torch.equal(apart.codes, whole.codes)
    assert torch.equal(apart.factors.scale, whole.factors.scale)
    assert torch.equal(kind.fake_quantize(weight), rounded[0])
    assert torch.equal(kind.fake_quantize(weight, dtype=torch.float32), rounded[1])
    assert torch.equal(kind.dequantize(apart), values)
