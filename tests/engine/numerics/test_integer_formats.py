import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.engine.numerics.integer_formats import INT4, INT8, IntegerFormat


@pytest.mark.parametrize("number_format", [INT8, INT4])
def test_every_quarter_step_is_rounded_half_to_even_and_clipped(
    number_format: IntegerFormat,
) -> None:
    low, high = {8: (-128, 127), 4: (-8, 7)}[number_format.bits]
    quarters = [i / 4 for i in range(4 * low - 20, 4 * high + 21)]
    # Python's round is half to even.
    expected = [min(max(round(q), low), high) for q in quarters]
    for dtype in (torch.float32, torch.float16):
        x = torch.tensor(quarters, dtype=dtype)
        codes = number_format.encode(x)
        assert codes.dtype == number_format.storage
        assert codes.tolist() == expected
        assert number_format.round(x).tolist() == expected
        assert number_format.round(x).dtype == dtype
        assert number_format.decode(codes, dtype).tolist() == expected


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_any_float_is_rounded_as_python_rounds_it(values: list[float]) -> None:
    expected = [min(max(round(v), -128), 127) if math.isfinite(v) else v for v in values]
    expected = [min(max(v, -128), 127) for v in expected]
    assert INT8.encode(torch.tensor(values)).tolist() == expected


def test_storage_is_small_and_int4_travels_wide() -> None:
    assert (INT8.storage, INT4.storage) == (torch.int8, torch.int32)
    assert (INT8.scale_target, INT4.scale_target) == (127.0, 7.0)


def test_nan_has_no_code_but_survives_rounding() -> None:
    x = torch.tensor([math.nan, 300.0])
    with pytest.raises(ValueError, match="NaN"):
        INT8.encode(x)
    assert INT8.round(x).isnan().tolist() == [True, False]
    with pytest.raises(TypeError):
        INT8.encode(torch.tensor([1]))
    with pytest.raises(TypeError):
        INT8.decode(torch.tensor([1]))
