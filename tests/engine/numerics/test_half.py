import numpy as np
import pytest

from workbench.engine.numerics.half import to_half_precision, truncate_dequant


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(0.0123456789, 0.01234436), (1e-5, 1.0000673e-05), (70000.0, 69960.25)],
)
def test_precision_cast_follows_the_table(scale: float, expected: float) -> None:
    assert to_half_precision(scale) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("deq", "expected"), [(1e-5, 9.998679e-06), (70000.0, 69952.0)])
def test_dequant_truncation_follows_the_table(deq: float, expected: float) -> None:
    result = truncate_dequant(np.float32(deq))
    assert result.dtype == np.float32
    assert float(result) == pytest.approx(expected, rel=1e-6)


def test_truncation_never_rounds_up_and_keeps_ten_bits() -> None:
    values = np.random.default_rng(0).uniform(1e-6, 10, 1000).astype(np.float32)
    cut = truncate_dequant(values)
    assert (cut <= values).all()
    mantissa, _ = np.frexp(cut.astype(np.float64))
    assert (mantissa * 2**11 == np.floor(mantissa * 2**11)).all()
