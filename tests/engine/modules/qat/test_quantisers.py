"""State, initialisation and copies of modules that quantise (chapter 30 sections 4.2 and 5)."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from workbench.engine.algorithms.clip_initialiser import ClipInitialiser
from workbench.engine.modules.qat import quantisers
from workbench.engine.modules.qat.quantisers import (
    ActivationSettings,
    QuantisingModule,
    WeightSettings,
)
from workbench.engine.numerics.integer import fake_quantize_activation


class Layer(QuantisingModule):
    """A linear map with one input quantiser and one weight quantiser."""

    def __init__(self, activation: ActivationSettings, weight: WeightSettings) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 4, generator=generator))
        self.add_activation("acts_", activation)
        self.add_weight("wts_", weight, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.quantise_activation("acts_", x)
        return x @ self.quantise_weight("wts_", self.weight).T

    def _own_weights(self) -> dict[str, Tensor]:
        return {"wts_": self.weight}


def layer(trained: bool = False, **settings: Any) -> Layer:
    return Layer(ActivationSettings(**settings), WeightSettings(trained_scales=trained))


def batch(seed: int, count: int = 8) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def clips(module: QuantisingModule) -> list[float]:
    return [float(clip.detach()) for clip in module.clips("acts_")]


def test_bounds_are_those_of_each_batch_until_they_are_found() -> None:
    module = layer(batch_num=3)
    for seed in range(2):
        x = batch(seed)
        out = module(x)
        assert clips(module) == pytest.approx([float(x.max()), float(x.min())])
        assert not module.initialised("acts_")
        assert bool(module.acts_clip_max_pre.isnan())
        # Already quantised between them.
        grid = fake_quantize_activation(x, float(module.acts_scale), int(module.acts_offset), 8)
        weight = module.quantise_weight("wts_", module.weight)
        torch.testing.assert_close(out, grid @ weight.T)
    module(batch(2))
    search = ClipInitialiser(8, 3)
    for seed in range(3):
        search.update(batch(seed))
    assert clips(module) == pytest.approx(list(search.result()))
    assert module.initialised("acts_")
    assert float(module.acts_clip_max_pre) == clips(module)[0]


def test_they_are_found_in_evaluation_too_and_given_ones_are_kept() -> None:
    module = layer().eval()
    with torch.no_grad():
        assert not module(batch(0)).requires_grad  # A2, A4
    assert module.initialised("acts_")
    given = layer(clip_max=0.5, clip_min=-0.25)
    assert given.initialised("acts_")
    given(batch(0))
    assert clips(given) == [0.5, -0.25]


def test_an_eval_forward_without_gradients_keeps_no_graph() -> None:
    module = layer()
    module(batch(0))
    with torch.no_grad():
        assert module(batch(1)).grad_fn is None
    assert module(batch(1)).grad_fn is not None


@pytest.mark.parametrize("trained", [False, True])
def test_a_checkpoint_goes_on_where_it_stopped(trained: bool) -> None:
    def train(module: Layer, steps: range) -> list[float]:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        losses = []
        for seed in steps:
            loss = module(batch(seed)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    whole = layer(trained)
    expected = train(whole, range(6))
    first, second = layer(trained), layer(trained)
    found = train(first, range(3))
    second.load_state_dict(first.state_dict())
    found += train(second, range(3, 6))
    assert found == expected  # A3: no bounds were searched again
    for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_from_before_the_search_is_searched_after() -> None:
    source, target = layer(), layer()
    target(batch(0))
    target.load_state_dict(source.state_dict())
    assert not target.initialised("acts_")
    target(batch(1))
    assert clips(target) != clips(source)


def test_copies_are_independent_and_pickles_are_equal() -> None:
    for steps in (1, 3):  # during the search and after it
        module = layer(batch_num=2)
        for seed in range(steps):
            module(batch(seed))
        twin = copy.deepcopy(module)
        read = pickle.loads(pickle.dumps(module))
        before = {k: v.clone() for k, v in module.state_dict().items()}
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        twin(batch(5)).square().sum().backward()
        optimizer.step()
        for name, value in module.state_dict().items():
            torch.testing.assert_close(value, before[name], equal_nan=True, rtol=0, atol=0)
        outs = [m(batch(9)) for m in (module, read)]
        assert torch.equal(*outs)


def test_casts_change_the_layer_and_not_its_state() -> None:
    module = layer(trained=True)
    module(batch(0))
    before = {n: t.clone() for n, t in module.state_dict().items() if n != "weight"}
    for dtype in (torch.float16, torch.bfloat16):
        module.to(dtype)
        assert module.weight.dtype == dtype
        out = module(batch(1).to(dtype))
        assert out.dtype == dtype
        out.float().sum().backward()
    for name in before:
        assert module.state_dict()[name].dtype == torch.float32
    # The values were never rounded to sixteen bits.
    assert torch.equal(module.acts_clip_max_pre, before["acts_clip_max_pre"])
    assert torch.equal(module.wts_scales, before["wts_scales"])


def test_autocast() -> None:
    module = layer()
    module(batch(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(batch(1))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert module.weight.grad is not None


def test_bounds_pushed_apart_by_an_optimiser_fall_back() -> None:
    module = layer(clip_max=1.0, clip_min=-1.0)
    with torch.no_grad():
        module.clips("acts_")[0].fill_(-0.5)
    module(batch(0))
    assert clips(module) == [1.0, -1.0]
    with torch.no_grad():
        for clip in module.clips("acts_"):
            clip.fill_(0.25)
    module(batch(0))
    assert clips(module) == [1.0, -1.0]


def test_the_lower_bound_is_pinned() -> None:
    module = layer(fixed_min=True)
    module(batch(0).relu())
    high, low = clips(module)
    assert low == 0
    assert float(module.acts_scale) == pytest.approx(high / 255)
    assert float(module.acts_offset) == -128


def test_a_symmetric_grid_trains_the_bound_that_decides() -> None:
    module = layer(clip_max=1.0, clip_min=-2.0, symmetric=True)
    out = module.quantise_activation("acts_", torch.tensor([-1.99, 0.0, 3.0]))
    assert float(module.acts_scale) == pytest.approx(2 / 128)
    assert float(module.acts_offset) == 0
    assert out.tolist() == pytest.approx([-127 * 2 / 128, 0, 127 * 2 / 128], rel=1e-6)
    out.sum().backward()
    high, low = module.clips("acts_")
    # d/dB of: round(t) - t of the first (t = -127.36), and 127 of the last, over 128.
    assert low.grad is not None
    assert float(low.grad) == pytest.approx(-(0.36 + 127) / 128, rel=1e-3)
    assert high.grad is not None
    assert float(high.grad) == 0


def test_trained_scales_start_as_arq_and_stay_positive() -> None:
    module = layer(trained=True)
    module(batch(0))
    plain = layer()
    plain(batch(0))
    assert torch.equal(module.wts_scales.detach(), plain.wts_scales)
    with torch.no_grad():
        module.wts_scales[0] = -1
    module(batch(0))
    assert float(module.wts_scales.detach()[0]) > 0


def test_factors_are_those_of_the_parameters_as_they_are() -> None:
    module = layer()
    module(batch(0))
    with torch.no_grad():
        module.clips("acts_")[0].mul_(2)
        module.weight.mul_(3)
    scale, _ = module.activation_factors("acts_")
    assert scale != module.acts_scale
    scales = module.weight_factors("wts_", module.weight)
    module.eval()
    assert torch.equal(scale, module.acts_scale)
    assert torch.equal(scales, module.wts_scales)


def test_an_empty_batch_is_no_batch() -> None:
    module = layer()
    assert module(batch(0, count=0)).shape == (0, 3)
    assert not module.initialised("acts_")


def test_bad_data_is_named_with_the_layer() -> None:
    module = layer()
    module.layer_name = "stem.conv"
    with pytest.raises(RuntimeError, match=r"stem\.conv.*inf or NaN"):
        module(torch.full((2, 4), float("inf")))
    with pytest.raises(TypeError, match=r"stem\.conv.*int64"):
        module(torch.ones(2, 4, dtype=torch.int64))


def test_ranks_share_the_mean_of_their_bounds_in_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def mean(values: Tensor) -> Tensor:
        calls.append(values.tolist())
        return values + 1

    monkeypatch.setattr(quantisers, "mean_over_ranks", mean)
    module = layer(clip_max=1.0, clip_min=-3.0)
    module.eval()(batch(0))
    assert not calls  # one rank alone may evaluate
    module.train()(batch(0))
    assert calls == [[1.0, -3.0]]
    assert clips(module) == [2.0, -2.0]
    assert float(module.acts_scale) == pytest.approx(4 / 255)
