"""Chapter 25 section 18, against searches written out here."""

import numpy as np
import pytest
import torch

from workbench.engine.algorithms.kv_observer import make_kv_observer
from workbench.engine.files.kv_config import KVParams

BUDGET = 1 << 24
DISTRIBUTIONS = {
    "gaussian": lambda g: torch.randn(100_000, generator=g),
    "laplace": lambda g: (
        torch.empty(100_000).exponential_(generator=g)
        * torch.randint(0, 2, (100_000,), generator=g).mul(2).sub(1)
    ),
    "relu": lambda g: torch.randn(100_000, generator=g).relu(),
}


def data(name, seed=0):
    return DISTRIBUTIONS[name](torch.Generator().manual_seed(seed))


def observe(params, asymmetric, *batches, budget=BUDGET):
    observer = make_kv_observer(params, asymmetric, byte_budget=budget)
    for batch in batches:
        observer.update(batch)
    return observer.result()


def brute_force(x, asymmetric, ratios):
    """The search of section 18 in float64 over one flat array; percentiles of 1."""
    x = x.double().numpy()
    high, low = max(x.max(), 0.0), min(x.min(), 0.0)
    losses, scales = [], []
    for ratio in ratios:
        if asymmetric:
            top, bottom = ratio * high, low
            scale = (top - bottom) / 255
        else:
            top = ratio * max(abs(high), abs(low))
            bottom = -top
            scale = top / (128 if abs(high) < abs(low) else 127)
        if scale < 1.19e-7:
            scale = 1.0
        losses.append(((np.rint(np.clip(x, bottom, top) / scale) * scale - x) ** 2).mean())
        scales.append(scale)
    best = int(np.argmin(losses))
    offset = -int(np.rint(low / scales[best])) - 128 if asymmetric else 0
    return scales[best], offset, losses


def reconstruction(x, factors):
    scale, offset = factors.scale[0], factors.offset[0]
    code = ((x / scale).round() + offset).clamp(-128, 127)
    return float(((code - offset) * scale - x).square().mean())


DEFAULT_RATIOS = 0.7 + 0.01 * np.arange(61)


@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_ifmr_finds_the_best_of_61_candidates(name, asymmetric):
    x = data(name)
    found = observe(KVParams(max_percentile=1.0, min_percentile=1.0), asymmetric, x)
    scale, offset, losses = brute_force(x, asymmetric, DEFAULT_RATIOS)
    assert len(losses) == 61
    assert found.scale == (pytest.approx(scale, rel=1e-4),)
    assert found.offset == (offset,)


@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_hfmg_is_as_good_as_ifmr(name, asymmetric):
    x = data(name)
    ifmr, hfmg = (observe(KVParams(a), asymmetric, x.reshape(10, -1)) for a in ("ifmr", "hfmg"))
    bound = 1.03 if asymmetric else 1.15
    assert reconstruction(x, hfmg) <= bound * reconstruction(x, ifmr)


@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize("algorithm", ["ifmr", "hfmg"])
def test_channels_are_problems_of_their_own(algorithm, asymmetric):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 600, 6, generator=generator) * torch.logspace(-3, 3, 6)
    x[..., 2] = 0.0
    x[..., 3] = x[..., 3].abs()
    params = KVParams(algorithm, quant_granularity=1)
    found = observe(params, asymmetric, *x.to(torch.bfloat16).split(2))
    assert len(found.scale) == len(found.offset) == 6
    assert (found.scale[2], found.offset[2]) == (1.0, -128 if asymmetric else 0)
    for channel in (0, 1, 3, 4, 5):
        values = x[..., channel].to(torch.bfloat16).float().reshape(2, -1)
        alone = observe(KVParams(algorithm), asymmetric, *values)
        assert found.scale[channel] == pytest.approx(alone.scale[0], rel=1e-5)
        assert found.offset[channel] == alone.offset[0]
    assert all(-128 <= o <= 127 for o in found.offset)
    assert asymmetric or not any(found.offset)


def test_percentile_of_a_channel_cuts_its_outliers():
    x = torch.linspace(-1, 1, 1001)[:, None].repeat(1, 2)
    x[0, 0], x[1, 0] = 1000.0, 900.0
    params = KVParams(max_percentile=0.998, quant_granularity=1, search_range=(0.99, 1.0))
    found = observe(params, True, x)
    # The k-th largest with k = n - int(0.998 n) = 3 is an ordinary value.
    assert found.scale[0] == pytest.approx(0.99 * 2 / 255, rel=0.02)


def test_a_small_budget_keeps_extremes_and_nearly_the_scale():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(20_000, 4, generator=generator)
    x[17, 1] = 40.0
    for granularity in (0, 1):
        params = KVParams(quant_granularity=granularity, search_range=(0.9, 1.1))
        full = observe(params, True, *x.split(2000))
        small = observe(params, True, *x.split(2000), budget=1 << 15)
        assert small.scale == pytest.approx(full.scale, rel=0.12)
        assert small.scale[-1 if granularity == 0 else 1] > 0.9 * 40 / 255


def test_width_types_and_no_data():
    observer = make_kv_observer(KVParams(quant_granularity=1), True, byte_budget=BUDGET)
    with pytest.raises(RuntimeError, match="no batch"):
        observer.result()
    observer.update(torch.ones(2, 4))
    with pytest.raises(RuntimeError, match="5 channels, it had 4"):
        observer.update(torch.ones(2, 5))
    with pytest.raises(TypeError, match="int64"):
        observer.update(torch.ones(2, 4, dtype=torch.int64))
