"""Chapter 30 section 12, ideas 1, 2 and 6, against the formulas of section 5.3 in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from workbench.engine.algorithms import ulq
from workbench.engine.algorithms.ulq import (
    affine_factors,
    pass_through,
    ulq_activation,
    valid_clips,
)
from workbench.engine.numerics.integer import fake_quantize_activation

X = [-1.5, -0.2, 0.3, 0.9, 2.0]
G = [1.0, 2.0, 3.0, 4.0, 5.0]


def scalar(value: float) -> Tensor:
    return torch.tensor(value, requires_grad=True)


@pytest.mark.parametrize(
    ("clips", "fixed_min", "factors", "y", "dx", "dclips"),
    [
        (
            (1.0, -1.0),
            False,
            (0.00784314, -1),
            [-0.9960785, -0.1960784, 0.2980392, 0.9019608, 1.0039216],
            [0, 2, 3, 4, 0],
            (4.997059, 1.002941),
        ),
        (
            (1.0, -0.5),
            False,
            (0.00588235, -43),
            [-0.5, -0.2, 0.3, 0.9, 1.0],
            [0, 2, 3, 4, 0],
            (5.0, 1.0),
        ),
        (
            (1.0, -0.5),
            True,
            (0.00392157, -128),
            [0, 0, 0.2980392, 0.8980393, 1.0],
            [0, 0, 3, 4, 0],
            (4.986275, 3.013725),
        ),
    ],
)
def test_the_table(
    clips: tuple[float, float],
    fixed_min: bool,
    factors: tuple[float, int],
    y: list[float],
    dx: list[float],
    dclips: tuple[float, float],
) -> None:
    x = torch.tensor(X, requires_grad=True)
    high, low = map(scalar, clips)
    scale, offset = affine_factors(high, low * 0 if fixed_min else low, 8)
    assert float(scale) == pytest.approx(factors[0], rel=1e-5)
    assert float(offset) == factors[1]
    out = ulq_activation(x, high, low, 8, fixed_min=fixed_min)
    out.backward(torch.tensor(G))
    assert out.tolist() == pytest.approx(y, abs=1e-6)
    assert x.grad is not None
    assert x.grad.tolist() == dx
    assert (float(high.grad), float(low.grad)) == pytest.approx(dclips, abs=1e-5)


@pytest.mark.parametrize(
    ("clips", "expected"),
    [
        ((0.5, 0.5), (1, -1)),
        ((-0.5, -1.0), (1, -1)),
        ((2.0, 0.5), (2, -1)),
        ((3.0, -2.0), (3, -2)),
        ((1e-8, -1e-8), (1, -1)),  # closer than FLT_EPSILON (A13)
        ((-1.0, 2.0), (1, -1)),
        ((math.nan, -2.0), (math.nan, -2)),
    ],
)
def test_bounds_that_make_no_grid(
    clips: tuple[float, float], expected: tuple[float, float]
) -> None:
    tensors = [torch.tensor(float(c)) for c in (*clips, 1.0, -1.0)]
    high, low = valid_clips(*tensors, fixed_min=False)
    assert (float(high), float(low)) == pytest.approx(expected, nan_ok=True)
    high, low = valid_clips(*tensors, fixed_min=True)
    assert float(low) == 0


def test_an_empty_range_has_scale_one_and_the_lowest_offset() -> None:
    zero = torch.tensor(0.0)
    assert [float(v) for v in affine_factors(zero, zero, 8)] == [1, -128]
    assert ulq_activation(torch.tensor([-3.0, 0.0]), zero, zero, 8).tolist() == [0, 0]


def reference(
    x: np.ndarray, g: np.ndarray, high: float, low: float, bits: int
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Section 5.3, element by element, with factors in float32 as everywhere."""
    qmin, qmax, levels = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 2**bits - 1
    top, bottom = np.float32(max(high, 0.0)), np.float32(min(low, 0.0))
    scale = (top - bottom) / np.float32(levels)
    offset = np.rint(np.float32(qmin) - bottom / scale)
    inverse = np.float32(1) / scale
    y, dx = np.empty_like(x), np.empty_like(x)
    dhigh = dlow = 0.0
    for i, (value, gradient) in enumerate(zip(x, g, strict=True)):
        code = np.clip(np.rint(value * inverse) + offset, qmin, qmax)
        y[i] = (code - offset) * scale
        above = value > scale * (qmax - offset)
        below = value < scale * (qmin - offset)
        t = float(high if above else low if below else value) * float(inverse)
        e = (np.rint(t) - t) / levels
        dx[i] = 0 if above or below else gradient
        dhigh += float(gradient) * (e + above)
        dlow += float(gradient) * (float(below) - e)
    return y, dx, dhigh, dlow


@settings(max_examples=30, deadline=None)
@given(
    high=st.floats(0.01, 4),
    low=st.floats(-4, -0.01),
    bits=st.sampled_from([4, 8, 16]),
    seed=st.integers(0, 999),
)
def test_both_passes_on_random_data(high: float, low: float, bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, generator=generator) * 2
    g = torch.randn(64, generator=generator)
    high, low = float(np.float32(high)), float(np.float32(low))
    # A bound on a tie between two codes is rounded by the last bit: both ways are right.
    codes = np.array([high, low]) * (2**bits - 1) / (high - low)
    assume(bool((np.abs(codes % 1 - 0.5) > 1e-2).all()))
    y, dx, dhigh, dlow = reference(x.numpy(), g.numpy(), high, low, bits)
    for on_host in (True, False):  # the second way is that of accelerators
        leaf, clips = x.clone().requires_grad_(), (scalar(high), scalar(low))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ulq, "_on_host", lambda _tensor, answer=on_host: answer)
            out = ulq_activation(leaf, *clips, bits)
            out.backward(g)
        np.testing.assert_array_equal(out.detach().numpy(), y)
        assert leaf.grad is not None
        np.testing.assert_array_equal(leaf.grad.numpy(), dx)
        for clip, expected in zip(clips, (dhigh, dlow), strict=True):
            assert clip.grad is not None
            assert float(clip.grad) == pytest.approx(expected, abs=2e-3, rel=1e-4)


def test_values_on_the_bounds_are_inside() -> None:
    high, low = scalar(1.0), scalar(0.0)
    scale, _ = affine_factors(high, low, 8)
    top = float(scale * 255)
    x = torch.tensor([0.0, top, np.nextafter(np.float32(top), np.float32(2))], requires_grad=True)
    ulq_activation(x, high, low, 8).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 0]


def test_the_values_are_those_of_the_exported_files() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(3)) * 3
    high, low = torch.tensor(2.3), torch.tensor(-1.7)
    scale, offset = affine_factors(high, low, 8)
    expected = fake_quantize_activation(x, float(scale), int(offset), 8)
    assert torch.equal(ulq_activation(x, high, low, 8), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_computed_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(50, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    out = ulq_activation(x, torch.tensor(1.0), torch.tensor(-1.0), 8)
    expected = ulq_activation(x.detach().float(), torch.tensor(1.0), torch.tensor(-1.0), 8)
    assert torch.equal(out, expected.to(dtype))
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    with pytest.raises(TypeError, match="int64"):
        ulq_activation(torch.ones(3, dtype=torch.int64), torch.tensor(1.0), torch.tensor(-1.0), 8)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "expanded", "sliced", "empty"])
def test_memory_formats(layout: str) -> None:
    base = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(2))
    x = {
        "contiguous": base,
        "channels_last": base.contiguous(memory_format=torch.channels_last),
        "expanded": base[:, :1].expand(-1, 3, -1, -1),
        "sliced": base[..., ::2],
        "empty": base[:0],
    }[layout]
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    results = []
    for value in (x, x.contiguous()):
        leaf, clips = value.detach().requires_grad_(), (scalar(0.8), scalar(-0.6))
        out = ulq_activation(leaf, *clips, 8)
        out.backward(g)
        results.append((out.detach(), leaf.grad, clips[0].grad, clips[1].grad))
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second)
    if layout == "channels_last":
        assert results[0][0].is_contiguous(memory_format=torch.channels_last)


def test_large_tensors_are_worked_on_in_chunks() -> None:
    x = torch.linspace(-2, 2, 3 * ulq._CHUNK + 5).requires_grad_()
    high, low = scalar(1.5), scalar(-1.0)
    ulq_activation(x, high, low, 8).sum().backward()
    assert x.grad is not None
    scale, offset = (float(v) for v in affine_factors(high, low, 8))
    inside = (x >= scale * (-128 - offset)) & (x <= scale * (127 - offset))
    assert torch.equal(x.grad, inside.float())
    above = int((x > scale * (127 - offset)).sum())
    assert float(high.grad) == pytest.approx(above, rel=5e-3)


def test_nothing_is_read_back_from_an_accelerator() -> None:
    # A meta tensor has no values: reading one raises.
    x = torch.ones(4, device="meta", requires_grad=True)
    clips = [torch.ones((), device="meta", requires_grad=True) for _ in range(2)]
    valid = valid_clips(*clips, *clips, fixed_min=True)
    ulq_activation(x, *valid, 8, fixed_min=True).sum().backward()
    assert x.grad is not None


def test_the_clips_may_be_overwritten_before_the_backward_pass() -> None:
    x, high, low = torch.tensor(X, requires_grad=True), scalar(1.0), scalar(-1.0)
    first = ulq_activation(x, high, low, 8)
    with torch.no_grad():
        high.fill_(9.0)
    first.backward(torch.tensor(G))
    assert float(high.grad) == pytest.approx(4.997059, abs=1e-5)


def test_pass_through_touches_its_parameters_with_zeros() -> None:
    x, clip = torch.tensor(X, requires_grad=True), scalar(1.0)
    out = pass_through(x, clip)
    assert torch.equal(out, x)
    out.sum().backward()
    assert float(clip.grad) == 0


@pytest.mark.parametrize("bound", [math.nan, math.inf])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_bounds_that_are_not_finite_pass_it_on(bound: float) -> None:
    high, low = scalar(bound), scalar(-1.0)
    ulq_activation(torch.tensor(X), high, low, 8, fixed_min=False).sum().backward()
    assert math.isnan(float(high.grad))
