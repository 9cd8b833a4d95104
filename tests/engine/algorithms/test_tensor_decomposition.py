"""Kernels split in two, against NumPy's singular value decomposition of the unfolded kernel."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from workbench.engine.algorithms import tensor_decomposition
from workbench.engine.algorithms.left_factors import GramFactors
from workbench.engine.algorithms.tensor_decomposition import (
    Decomposition,
    Method,
    RankChoice,
    decompose_weight,
)
from workbench.engine.graph.kernel_split import KernelSplit

# Chapter 60 section 3: mode, shape (Cout, Cin, KH, KW), first and last kernel at rank r.
MODES = [
    ("FCFK", (6, 8, 3, 5), lambda r: (r, 8, 1, 5), lambda r: (6, r, 3, 1)),
    ("FCSK", (6, 8, 5, 3), lambda r: (r, 8, 5, 1), lambda r: (6, r, 1, 3)),
    ("SCFK", (8, 6, 3, 5), lambda r: (r, 6, 3, 1), lambda r: (8, r, 1, 5)),
    ("SCSK", (8, 6, 5, 3), lambda r: (r, 6, 1, 3), lambda r: (8, r, 5, 1)),
    ("SCFK", (8, 8, 3, 3), lambda r: (r, 8, 3, 1), lambda r: (8, r, 1, 3)),
]
UNFOLDED = {"FCFK": (0, 2, 1, 3), "FCSK": (0, 3, 1, 2), "SCFK": (1, 2, 0, 3), "SCSK": (1, 3, 0, 2)}


def matrix(weight: Tensor, mode: str) -> np.ndarray:
    turned = weight.double().numpy().transpose(UNFOLDED[mode])
    return turned.reshape(turned.shape[0] * turned.shape[1], -1)


def at(rank: int):
    return lambda _: RankChoice(rank)


def product(found: Decomposition) -> Tensor:
    """The kernel of both layers in a row: their answer to an impulse in each input channel."""
    first, last = found.first.double(), found.last.double()
    inputs = first.shape[1]
    height = max(first.shape[2], last.shape[2])
    width = max(first.shape[3], last.shape[3])
    impulse = torch.zeros(inputs, inputs, 2 * height - 1, 2 * width - 1, dtype=torch.float64)
    for channel in range(inputs):
        impulse[channel, channel, height - 1, width - 1] = 1
    return conv2d(conv2d(impulse, first), last).flip(2, 3).transpose(0, 1)


@pytest.mark.parametrize(("mode", "shape", "first", "last"), MODES)
def test_shapes_and_the_best_approximation(mode, shape, first, last) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64)
    split = KernelSplit(shape)
    assert split.mode == mode
    values = np.linalg.svd(matrix(weight, mode), compute_uv=False)
    for rank in (1, 5, split.rows):
        found = decompose_weight(weight, at(rank))
        assert found.first.shape == first(rank)
        assert found.last.shape == last(rank)
        lost = float((product(found) - weight).square().sum())
        energy = np.square(values).sum()
        assert lost == pytest.approx(np.square(values[rank:]).sum(), abs=1e-12 * energy)
        assert found.relative_error == pytest.approx((lost / energy) ** 0.5, abs=1e-7)


def special(kind: str) -> Tensor:
    """Kernels of 176×176×3×3, which take the Gram route (528 rows)."""
    torch.manual_seed(1)
    shape = (176, 176, 3, 3)
    weight = torch.randn(shape, dtype=torch.float64)
    if kind == "decaying":
        left, _, right = np.linalg.svd(matrix(weight, "SCFK"))
        turned = (left * np.exp(-np.arange(528) / 20.0)) @ right
        return torch.from_numpy(turned.reshape(176, 3, 176, 3)).permute(2, 0, 1, 3)
    if kind == "rank 5":
        thin = torch.randn(5, 176, 3, 1, dtype=torch.float64)
        return torch.einsum("riha,orbw->oihw", thin, torch.randn(176, 5, 1, 3).double())
    if kind == "half zero":
        weight[:, ::2] = 0
    if kind == "dirac":
        weight.zero_()
        torch.nn.init.dirac_(weight)
    if kind == "tiny":
        return (weight * 1e-40).float()
    if kind == "huge":
        return (weight * 1e18).float()
    return weight


@pytest.mark.parametrize(
    "kind", ["random", "decaying", "rank 5", "half zero", "dirac", "tiny", "huge"]
)
def test_the_gram_method_is_as_good_as_a_singular_value_decomposition(kind: str) -> None:
    weight = special(kind)
    power = np.square(np.linalg.svd(matrix(weight, "SCFK"), compute_uv=False))
    wanted = (power[96:].sum() / power.sum()) ** 0.5
    found = decompose_weight(weight, at(96))
    assert found.relative_error == pytest.approx(wanted, rel=1e-9, abs=1e-7)
    if weight.dtype == torch.float64:
        lost = (product(found) - weight).square().sum() / weight.square().sum()
        assert float(lost) == pytest.approx(wanted**2, rel=1e-9, abs=1e-13)


def test_methods_agree_in_spectrum_rank_and_factors() -> None:
    weight = special("decaying")
    seen: dict[str, np.ndarray] = {}

    def choose(method: str):
        def chosen(spectrum):
            seen[method] = spectrum()
            return RankChoice(48)

        return chosen

    gram, svd = (decompose_weight(weight, choose(m), method=m) for m in ("gram", "svd"))
    # The Gram matrix holds squares: values below 1e-8 of the largest are rounding.
    np.testing.assert_allclose(seen["gram"] ** 2, seen["svd"] ** 2, atol=1e-14)
    assert (seen["gram"] > 0).all()
    np.testing.assert_allclose(gram.first, svd.first, atol=1e-6 * float(svd.first.abs().max()))
    np.testing.assert_allclose(gram.last, svd.last, atol=1e-6 * float(svd.last.abs().max()))
    # The largest entry of every left vector is positive: signs are not left to the library.
    left = gram.first.permute(1, 2, 3, 0).reshape(-1, 48)
    assert (left[left.abs().argmax(dim=0), range(48)] > 0).all()


def test_a_lost_accuracy_is_seen_and_mended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    weight = special("random")
    wanted = decompose_weight(weight, at(32), method="svd")
    honest = GramFactors.leading

    def spoilt(self: GramFactors, rank: int):
        left, values = honest(self, rank)
        left[:, 0] += 1e-6 * left[:, 1]
        return left, values

    monkeypatch.setattr(GramFactors, "leading", spoilt)
    with caplog.at_level(logging.WARNING):
        found = decompose_weight(weight, at(32))
    assert "Gram method" in caplog.text
    assert found.relative_error == wanted.relative_error


def test_an_eigenvalue_that_is_not_found_is_mended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = special("random")

    def fails(self: GramFactors, rank: int):
        raise np.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(GramFactors, "leading", fails)
    found = decompose_weight(weight, at(32))
    assert torch.equal(found.first, decompose_weight(weight, at(32), method="svd").first)


@pytest.mark.parametrize("method", ["gram", "svd", "randomised"])
def test_zeros(method: Method) -> None:
    found = decompose_weight(torch.zeros(8, 8, 3, 3), at(4), method=method)
    assert found.relative_error == 0.0
    assert torch.equal(product(found), torch.zeros(8, 8, 3, 3, dtype=torch.float64))
    left = found.first.reshape(4, -1)
    assert torch.equal(left @ left.T, torch.eye(4))


def test_balance_shares_the_singular_values() -> None:
    weight = torch.randn(16, 12, 3, 3, dtype=torch.float64)
    plain, shared = (decompose_weight(weight, at(20), balance=b) for b in (False, True))
    torch.testing.assert_close(product(plain), product(shared), atol=1e-10, rtol=0)
    sizes = [
        f.transpose(0, d).flatten(1).norm(dim=1) for f, d in ((shared.first, 0), (shared.last, 1))
    ]
    torch.testing.assert_close(sizes[0], sizes[1])
    assert not torch.allclose(
        plain.first.flatten(1).norm(dim=1), plain.last.transpose(0, 1).flatten(1).norm(dim=1)
    )


def test_float16_is_clamped_and_half_types_stay() -> None:
    found = decompose_weight(torch.full((8, 8, 3, 3), 60000.0).half(), at(1))
    assert found.last.dtype == torch.float16
    assert found.first.isfinite().all()
    assert found.last.max() == torch.finfo(torch.float16).max
    assert decompose_weight(torch.randn(8, 8, 3, 3).bfloat16(), at(3)).first.dtype == torch.bfloat16


def test_a_sketch_comes_near_the_optimum_and_says_how_near() -> None:
    weight = special("random")
    best = decompose_weight(weight, at(64)).relative_error
    found = decompose_weight(weight, at(64), method="randomised")
    assert best <= found.relative_error <= 1.03 * best
    lost = (product(found) - weight).norm() / weight.norm()
    assert float(lost) == pytest.approx(found.relative_error, rel=1e-6)
    again = decompose_weight(weight, at(64), method="randomised")
    assert torch.equal(found.first, again.first)


def test_no_pair_when_only_the_error_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(8, 8, 3, 3)
    full = decompose_weight(weight, at(4))
    monkeypatch.setattr(tensor_decomposition, "_project", None)
    for options in ({"only_error": True}, {"max_error": full.relative_error / 2}):
        found = decompose_weight(weight, at(4), **options)
        assert found.first is None
        assert found.relative_error == pytest.approx(full.relative_error, rel=1e-9)
