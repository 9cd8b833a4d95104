import math

import numpy as np
import pytest
import torch
from number_lines import as_bits, nearest, probes

from workbench.engine.numerics.float4 import FLOAT4

MAGNITUDES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def value_of(code: int) -> float:
    """1 sign, 2 exponent bits of bias 1, 1 mantissa bit."""
    exponent, mantissa = code >> 1 & 3, code & 1
    size = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    return -size if code & 8 else size


VALUES = np.array([value_of(code) for code in range(16)], dtype=np.float32)


def test_all_codes_decode_to_the_definition_and_back() -> None:
    codes = torch.arange(16, dtype=torch.uint8)
    assert VALUES[:8].tolist() == MAGNITUDES
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        decoded = FLOAT4.decode(codes, dtype)
        assert as_bits(decoded.float()) == as_bits(torch.from_numpy(VALUES))
        assert torch.equal(FLOAT4.encode(decoded), codes)
    assert FLOAT4.decode(torch.tensor([16], dtype=torch.uint8)).isnan().all()


def test_encode_is_nearest_with_ties_to_even_everywhere() -> None:
    numbers = probes(MAGNITUDES)
    index = nearest(numbers, MAGNITUDES, "even")
    codes = FLOAT4.encode(torch.from_numpy(numbers))
    np.testing.assert_array_equal(codes.numpy(), index + 8 * np.signbit(numbers))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_is_the_same(dtype: torch.dtype) -> None:
    x = torch.from_numpy(probes(MAGNITUDES)).to(dtype)
    numbers = x.float().numpy()
    expected = np.copysign(np.array(MAGNITUDES)[nearest(numbers, MAGNITUDES, "even")], numbers)
    rounded = FLOAT4.round(x)
    assert rounded.dtype == dtype
    assert as_bits(rounded.float()) == as_bits(torch.from_numpy(expected.astype(np.float32)))


def test_the_documented_intervals() -> None:
    ends = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    closed_below = [True, False, True, False, True, False, True]  # which neighbour owns the end
    for i, (end, below) in enumerate(zip(ends, closed_below, strict=True)):
        assert FLOAT4.round(torch.tensor(end)).item() == MAGNITUDES[i if below else i + 1]
    x = torch.tensor([math.inf, -math.inf, 1e9, -0.0, -0.2])
    assert FLOAT4.encode(x).tolist() == [7, 15, 7, 8, 8]


def test_nan_has_no_code_but_survives_rounding() -> None:
    x = torch.tensor([1.0, math.nan])
    with pytest.raises(ValueError, match="1 of 2 values are NaN"):
        FLOAT4.encode(x)
    assert FLOAT4.round(x).isnan().tolist() == [False, True]
    with pytest.raises(TypeError):
        FLOAT4.round(x.double())
    with pytest.raises(TypeError):
        FLOAT4.decode(torch.tensor([1]))
