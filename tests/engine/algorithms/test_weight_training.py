"""Chapter 30 section 12, ideas 3, 4 and 6, against the formulas of sections 5.4 and 5.5."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from workbench.engine.algorithms.weight_training import (
    arq_weight,
    ulq_weight,
    weight_scales,
)

W = [[0.5, -1, 0.25], [0.1, 0.2, -0.05]]
G = [[1.0, 2, 3], [4, 5, 6]]

LAYOUTS = [
    # (shape of the stored weight, axis, groups)
    ((4, 6), 0, 1),  # Linear
    ((4, 3, 5), 0, 1),  # Conv1d
    ((6, 2, 3, 3), 0, 3),  # Conv2d in groups
    ((4, 2, 2, 3, 2), 0, 1),  # Conv3d
    ((4, 5, 3), 1, 1),  # ConvTranspose1d
    ((6, 2, 3, 3), 1, 3),  # ConvTranspose2d in groups: 6 output channels
]


def rows(weight: np.ndarray, axis: int, groups: int) -> list[tuple[np.ndarray, ...]]:
    """Indices of each output channel's elements, by the definition of the stored layouts."""
    found = []
    if axis == 0:
        for channel in range(weight.shape[0]):
            mask = np.zeros(weight.shape, bool)
            mask[channel] = True
            found.append(np.nonzero(mask))
        return found
    per_group = weight.shape[0] // groups
    for channel in range(weight.shape[1] * groups):
        group, column = divmod(channel, weight.shape[1])
        mask = np.zeros(weight.shape, bool)
        mask[group * per_group : (group + 1) * per_group, column] = True
        found.append(np.nonzero(mask))
    return found


def test_arq_table() -> None:
    w = torch.tensor(W, requires_grad=True)
    quantised, scales = arq_weight(w, 8, channel_axis=0)
    assert scales.tolist() == pytest.approx([0.0078125, 0.2 / 127])
    quantised.backward(torch.tensor(G))
    assert w.grad is not None
    assert w.grad.tolist() == G
    quantised, scales = arq_weight(w, 8, channel_axis=None)
    assert scales.tolist() == [0.0078125]
    assert quantised[1].tolist() == pytest.approx([0.1015625, 0.203125, -0.046875])
    assert weight_scales(w, 4, channel_axis=0).tolist() == pytest.approx([0.125, 0.02857143])


def test_ulq_table() -> None:
    w, s = torch.tensor(W, requires_grad=True), torch.tensor([0.004, 0.001], requires_grad=True)
    quantised = ulq_weight(w, s, 8, channel_axis=0)
    expected = [0.5, -0.512, 0.248, 0.1, 0.127, -0.05]
    assert quantised.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    quantised.backward(torch.tensor(G))
    assert w.grad is not None
    assert s.grad is not None
    assert w.grad.tolist() == G
    assert s.grad.tolist() == pytest.approx([-13.192123, 32.532036], rel=1e-6)
    s = torch.tensor([0.004], requires_grad=True)
    ulq_weight(w, s, 8, channel_axis=None).backward(torch.tensor(G))
    assert s.grad is not None
    assert s.grad.tolist() == pytest.approx([-13.038428], rel=1e-6)


@pytest.mark.parametrize(("shape", "axis", "groups"), LAYOUTS)
def test_every_layout(shape: tuple[int, ...], axis: int, groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(shape, generator=generator)
    g = torch.randn(shape, generator=generator)
    scales = weight_scales(w, 8, channel_axis=axis, groups=groups)
    channels = rows(w.numpy(), axis, groups)
    assert scales.shape == (len(channels),)
    half = (scales * 0.5).requires_grad_()  # half of the values are clipped
    leaf = w.clone().requires_grad_()
    trained = ulq_weight(leaf, half, 8, channel_axis=axis, groups=groups)
    trained.backward(g)
    plain, _ = arq_weight(w, 8, channel_axis=axis, groups=groups)
    for channel, index in enumerate(channels):
        values = w.numpy()[index].astype(np.float64)
        low, high = values.min(), values.max()
        s = max(abs(low), abs(high)) / (128 if abs(high) < abs(low) else 127)
        assert float(scales[channel]) == pytest.approx(s)
        codes = np.clip(np.rint(values / float(scales[channel])), -128, 127)
        np.testing.assert_allclose(plain.numpy()[index], codes * s, rtol=1e-5)
        s = float(half.detach()[channel])
        t = values / s
        np.testing.assert_allclose(
            trained.detach().numpy()[index], np.clip(np.rint(t), -128, 127) * s, rtol=1e-5
        )
        slope = np.where(t < -128, -128, np.where(t > 127, 127, np.rint(t) - t))
        expected = (slope * g.numpy()[index]).sum() / np.sqrt(len(values) * 127)
        assert half.grad is not None
        assert float(half.grad[channel]) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, g)


def test_a_scale_that_was_trained_away_counts_as_epsilon() -> None:
    w = torch.tensor(W)
    out = ulq_weight(w, torch.tensor([-3.0, 0.0]), 8, channel_axis=0)
    assert bool(torch.isfinite(out).all())
    assert out.abs().max() <= 128 * 1.2e-7


def test_flipped_channels_have_the_divisor_of_their_folded_sign() -> None:
    w = torch.tensor([[1.0, -0.5], [1.0, -0.5]])
    flipped = torch.tensor([False, True])
    scales = weight_scales(w, 8, channel_axis=0, flipped=flipped)
    assert scales.tolist() == pytest.approx([1 / 127, 1 / 128])


def test_zero_channels_half_precision_and_strange_strides() -> None:
    assert weight_scales(torch.zeros(2, 3), 8, channel_axis=0).tolist() == [1, 1]
    w = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    last = w.to(memory_format=torch.channels_last)
    both: list[Tensor] = [arq_weight(x, 8, channel_axis=0)[0] for x in (w, last)]
    assert torch.equal(*both)
    half, _ = arq_weight(w.half(), 8, channel_axis=0)
    assert half.dtype == torch.float16


def test_nothing_is_read_back_from_an_accelerator() -> None:
    w = torch.ones(4, 3, device="meta", requires_grad=True)
    quantised, scales = arq_weight(w, 8, channel_axis=0)
    ulq_weight(quantised, scales.requires_grad_(), 8, channel_axis=0).sum().backward()
    assert w.grad is not None
