import math

import numpy as np
import pytest
import torch
from number_lines import as_bits, nearest, probes

from workbench.engine.numerics.float8 import FLOAT8


def value_of(code: int) -> float:
    """1 sign, 4 exponent bits of bias 7, 3 mantissa bits; S.1111.111 is NaN."""
    bits = f"{code:08b}"
    sign, exponent, mantissa = (-1.0) ** int(bits[0]), int(bits[1:5], 2), int(bits[5:], 2)
    if bits[1:] == "1111111":
        return math.nan
    if exponent == 0:
        return sign * mantissa / 8 * 2.0**-6
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


VALUES = np.array([value_of(code) for code in range(256)], dtype=np.float32)
MAGNITUDES = VALUES[:127].tolist()


def every_code() -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_all_codes_decode_to_the_definition(dtype: torch.dtype) -> None:
    decoded = FLOAT8.decode(every_code(), dtype)
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded.float().numpy(), VALUES)
    numbers = [code for code in range(256) if code & 0x7F != 0x7F]
    assert as_bits(decoded.float()[numbers]) == as_bits(torch.from_numpy(VALUES)[numbers])
    assert torch.equal(
        FLOAT8.encode(decoded).view(torch.uint8)[numbers], every_code().view(torch.uint8)[numbers]
    )


def expected_values(numbers: np.ndarray) -> np.ndarray:
    # Codes of neighbours alternate between even and odd mantissas, as their indices do.
    return np.copysign(np.array(MAGNITUDES)[nearest(numbers, MAGNITUDES, "even")], numbers)


def test_encode_is_nearest_with_ties_to_even_everywhere() -> None:
    numbers = probes(MAGNITUDES)
    codes = FLOAT8.encode(torch.from_numpy(numbers)).view(torch.uint8).numpy()
    np.testing.assert_array_equal(VALUES[codes], expected_values(numbers))
    np.testing.assert_array_equal(codes >= 128, np.signbit(numbers))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_is_the_same(dtype: torch.dtype) -> None:
    x = torch.from_numpy(probes(MAGNITUDES)).to(dtype)
    rounded = FLOAT8.round(x)
    assert rounded.dtype == dtype
    expected = expected_values(x.float().numpy()).astype(np.float32)
    assert as_bits(rounded.float()) == as_bits(torch.from_numpy(expected))


def test_out_of_range_saturates_and_nan_stays() -> None:
    x = torch.tensor([500.0, 464.0, 1e9, math.inf, -math.inf, math.nan, 2**-10, 1.5 * 2**-10])
    expected = [448.0, 448.0, 448.0, 448.0, -448.0, None, 0.0, 2**-9]
    for result in (FLOAT8.decode(FLOAT8.encode(x)), FLOAT8.round(x)):
        assert [None if math.isnan(v) else v for v in result.tolist()] == expected
    assert FLOAT8.encode(x)[5].view(torch.uint8).item() & 0x7F == 0x7F


def test_wrong_types() -> None:
    with pytest.raises(TypeError):
        FLOAT8.encode(torch.tensor([1.0], dtype=torch.float64))
    with pytest.raises(TypeError):
        FLOAT8.decode(torch.tensor([1], dtype=torch.uint8))
