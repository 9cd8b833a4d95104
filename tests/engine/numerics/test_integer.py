import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.engine.numerics.integer import (
    dequantize_activation,
    fake_quantize_activation,
    guard_activation,
    guard_scale,
    int_range,
    quantize_activation,
    quantize_weight,
)


def test_ranges() -> None:
    assert [int_range(b) for b in (4, 8, 16)] == [(-8, 7), (-128, 127), (-32768, 32767)]


def test_ties_round_to_even_before_the_offset_is_added() -> None:
    # With the offset inside the rounding, 0.5 + 1 would become 2 and not 1.
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    assert quantize_activation(x, 1.0, 1, 8).tolist() == [1, 3, 3, 1, -1]


@given(
    scale=st.floats(1e-4, 10),
    offset=st.integers(-128, 127),
    values=st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=30),
)
def test_activation_codes_are_the_documented_float32_formula(
    scale: float, offset: int, values: list[float]
) -> None:
    x = np.array(values, dtype=np.float32)
    inverse = np.float32(1) / np.float32(scale)
    expected = np.clip(np.rint(x * inverse) + offset, -128, 127)
    codes = quantize_activation(torch.from_numpy(x), scale, offset, 8)
    np.testing.assert_array_equal(codes.numpy(), expected)
    real = (expected - offset).astype(np.float32) * np.float32(scale)
    np.testing.assert_array_equal(dequantize_activation(codes, scale, offset).numpy(), real)
    np.testing.assert_array_equal(
        fake_quantize_activation(torch.from_numpy(x), scale, offset, 8).numpy(), real
    )


def test_zero_is_exact_and_the_input_is_left_alone() -> None:
    x = torch.tensor([0.0, 3.3, -200.0])
    before = x.clone()
    assert fake_quantize_activation(x, 0.7, -33, 8)[0] == 0
    assert torch.equal(x, before)


def test_half_is_computed_in_float32_and_integers_are_refused() -> None:
    codes = quantize_activation(torch.tensor([1.0], dtype=torch.float16), 1e-3, 0, 16)
    assert codes.dtype == torch.float32
    assert codes.item() == 1000
    with pytest.raises(TypeError):
        quantize_activation(torch.tensor([1]), 1.0, 0, 8)


def test_weight_codes_per_channel_on_any_axis() -> None:
    weight = torch.tensor([[1.0, 1.0], [10.0, -300.0]])
    scale = torch.tensor([0.5, 2.0])
    assert quantize_weight(weight, scale, 8, 0).tolist() == [[2, 2], [5, -128]]
    assert quantize_weight(weight, scale, 8, 1).tolist() == [[2, 0], [20, -128]]


def test_the_guard_replaces_only_empty_scales_unless_compatible(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scale = torch.tensor([0.0, 1e-8, 0.1])
    assert guard_scale(scale).tolist() == [1.0, scale[1].item(), scale[2].item()]
    assert guard_scale(scale, compat=True).tolist() == [1.0, 1.0, scale[2].item()]
    with pytest.raises(RuntimeError):
        guard_scale(torch.tensor([float("inf")]))
    assert not caplog.records
    assert guard_activation(0.0, 5, 8, asymmetric=True) == (1.0, -128)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert guard_activation(0.0, 0, 8, asymmetric=False) == (1.0, 0)
    assert guard_activation(1e-8, 5, 16, asymmetric=True, compat=True) == (1.0, -32768)
    assert guard_activation(1e-8, 5, 16, asymmetric=True)[1] == 5
