import itertools
import math

import numpy as np
import pytest
import torch
from number_lines import as_bits, nearest, probes

from workbench.engine.numerics.hifloat8 import HIFLOAT8


def value_of(code: int) -> float:
    """A code read from its bit string, as the table of the format is written."""
    sign = -1.0 if code & 0x80 else 1.0
    if code in (0x00, 0x80):
        return 0.0 if code == 0 else math.nan
    if code & 0x7F == 0x6F:
        return sign * math.inf
    bits = f"{code & 0x7F:07b}"
    if bits.startswith("0000"):
        return sign * 2.0 ** (int(bits[4:], 2) - 23)
    for prefix, field in (("0001", 0), ("001", 1), ("01", 2), ("10", 3), ("11", 4)):
        if bits.startswith(prefix):
            rest = bits[len(prefix) :]
            if field == 0:
                exponent, mantissa = 0, rest
            else:
                size = int("1" + rest[1:field], 2)
                exponent, mantissa = (-size if rest[0] == "1" else size), rest[field:]
            return sign * 2.0**exponent * (1 + int(mantissa, 2) / 2 ** len(mantissa))
    raise AssertionError(bits)


VALUES = {code: value_of(code) for code in range(256)}
FINITE = {code: value for code, value in VALUES.items() if math.isfinite(value)}
LINE = sorted((value, code) for code, value in FINITE.items() if value >= 0)
MAGNITUDES = [value for value, _ in LINE]
POSITIVE = np.array([code for _, code in LINE])


def expected_codes(numbers: np.ndarray) -> np.ndarray:
    codes = POSITIVE[nearest(numbers, MAGNITUDES, "away")]
    codes = np.where((numbers < 0) & (codes > 0), codes + 0x80, codes)
    return np.where(np.isinf(numbers), np.where(numbers < 0, 0xEF, 0x6F), codes)


def test_all_codes_decode_to_the_definition() -> None:
    decoded = HIFLOAT8.decode(torch.arange(256, dtype=torch.uint8))
    np.testing.assert_array_equal(decoded.numpy(), np.array(list(VALUES.values()), np.float32))
    assert len(set(FINITE.values())) == 253 and len(MAGNITUDES) == 127
    assert max(MAGNITUDES) == HIFLOAT8.largest == 2**15 and MAGNITUDES[1] == 2**-22


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_finite_codes_survive_a_round_trip_exactly(dtype: torch.dtype) -> None:
    codes = torch.tensor(list(FINITE), dtype=torch.uint8)
    values = HIFLOAT8.decode(codes, dtype)
    assert values.dtype == dtype
    assert values.double().tolist() == list(FINITE.values())
    assert torch.equal(HIFLOAT8.encode(values), codes)


def test_encode_is_nearest_with_ties_away_everywhere() -> None:
    numbers = probes(MAGNITUDES)
    codes = HIFLOAT8.encode(torch.from_numpy(numbers)).numpy()
    np.testing.assert_array_equal(codes, expected_codes(numbers))
    finite = np.isfinite(numbers)
    assert not np.isin(codes[finite], (0x6F, 0xEF, 0x80)).any()


def test_a_million_random_numbers() -> None:
    generator = np.random.default_rng(1)
    exponents = generator.uniform(-26, 17, 1_000_000)
    numbers = (generator.choice([-1.0, 1.0], 1_000_000) * 2**exponents).astype(np.float32)
    codes = HIFLOAT8.encode(torch.from_numpy(numbers)).numpy()
    np.testing.assert_array_equal(codes, expected_codes(numbers))


def test_midpoints_round_up_in_magnitude() -> None:
    middle = torch.tensor([(a + b) / 2 for a, b in itertools.pairwise(MAGNITUDES)])
    assert HIFLOAT8.decode(HIFLOAT8.encode(middle)).tolist() == MAGNITUDES[1:]
    assert HIFLOAT8.decode(HIFLOAT8.encode(-middle)).tolist() == [-m for m in MAGNITUDES[1:]]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (1, 0x08),
        (1.5, 0x0C),
        (2, 0x10),
        (0.5, 0x18),
        (4, 0x20),
        (8, 0x28),
        (0.25, 0x30),
        (0.125, 0x38),
        (16, 0x40),
        (128, 0x4C),
        (2**-4, 0x50),
        (256, 0x60),
        (32768, 0x6E),
        (2**-8, 0x70),
        (2**-15, 0x7E),
        (2**-16, 0x07),
        (2**-22, 0x01),
        (10.5, 0x2B),
        (3.14159, 0x15),
        (-7.3, 0xA7),
        (15.5, 0x40),
        (40000, 0x6E),
        (100, 0x4A),
        (0.1, 0x52),
        (1.75 * 2**14, 0x6E),
        (2**-23, 0x01),
        (-(2**-24), 0x00),
        (1e-40, 0x00),
        (3e38, 0x6E),
        (math.inf, 0x6F),
        (-math.inf, 0xEF),
        (math.nan, 0x80),
    ],
)
def test_documented_codes(number: float, code: int) -> None:
    assert HIFLOAT8.encode(torch.tensor(number, dtype=torch.float32)).item() == code


def test_every_nan_has_the_one_code() -> None:
    bits = torch.tensor([0x7F800001, 0x7FC00000, 0x7FFFFFFF], dtype=torch.int32)
    bits = torch.cat([bits, bits | -(1 << 31)])
    assert HIFLOAT8.encode(bits.view(torch.float32)).tolist() == [0x80] * 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_gives_the_values_of_the_codes_and_no_negative_zero(dtype: torch.dtype) -> None:
    x = torch.from_numpy(probes(MAGNITUDES)).to(dtype).reshape(-1, 2)
    rounded = HIFLOAT8.round(x)
    assert rounded.dtype == dtype and rounded.shape == x.shape
    expected = np.array([VALUES[c] for c in expected_codes(x.float().numpy().flatten())])
    assert as_bits(rounded.float()) == as_bits(torch.from_numpy(expected.astype(np.float32)))
    assert HIFLOAT8.round(torch.tensor(math.nan)).isnan()


def test_shapes_and_strides_are_kept_and_the_input_is_left_alone() -> None:
    x = torch.randn(6, 4, requires_grad=True)
    before = x.detach().clone()
    assert torch.equal(HIFLOAT8.encode(x.T), HIFLOAT8.encode(x).T)
    assert HIFLOAT8.encode(x[:0]).shape == (0, 4)
    assert HIFLOAT8.round(torch.tensor(3.3)).shape == ()
    assert torch.equal(x.detach(), before)


def test_wrong_types() -> None:
    for wrong in (torch.tensor([1.0], dtype=torch.float64), torch.tensor([1])):
        with pytest.raises(TypeError, match=r"float32, float16, bfloat16"):
            HIFLOAT8.encode(wrong)
    with pytest.raises(TypeError, match="hifloat8"):
        HIFLOAT8.decode(torch.tensor([1], dtype=torch.int8))
