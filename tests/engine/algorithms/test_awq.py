import pytest
import torch

from workbench.engine.algorithms import weight_formats
from workbench.engine.algorithms.awq import column_scales, search_column_scales
from workbench.engine.algorithms.weight_formats import WeightFormat
from workbench.engine.errors import Cancelled
from workbench.engine.events import CancelToken


def layer(seed=0):
    """Some channels of the input are much larger than the others."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(48, 64, generator=generator)
    x = torch.randn(256, 64, generator=generator) * torch.logspace(-1, 1, 64)
    return weight, x


def by_hand(weight, x, levels, grids_num):
    """Every trial written out for a symmetric integer grid with a scale per row."""
    magnitude = x.abs().mean(0)
    losses = []
    for t in range(grids_num):
        c = torch.clamp(magnitude ** (t / grids_num), min=1e-4).double()
        c = (c / torch.sqrt(c.max() * c.min())).float()
        scaled = weight * c
        high, low = scaled.amax(1, keepdim=True), scaled.amin(1, keepdim=True)
        scale = torch.where(high.abs() >= low.abs(), high.abs() / levels, low.abs() / (levels + 1))
        trial = (scaled / scale).round().clamp(-levels - 1, levels) * scale / c
        losses.append(float((x @ weight.T - x @ trial.T).pow(4).mean()))
    return losses


@pytest.mark.parametrize("grids_num", [1, 20])
def test_finds_the_smallest_loss_of_a_search_by_hand(grids_num):
    weight, x = layer()
    rounding = WeightFormat("int4")
    found = search_column_scales(weight, x.abs().mean(0), x, rounding, grids_num=grids_num)
    expected = by_hand(weight, x, 7, grids_num)
    assert found.losses == pytest.approx(expected, rel=1e-3)
    best = min(range(grids_num), key=expected.__getitem__)
    assert found.ratio == best / grids_num
    torch.testing.assert_close(found.scales, column_scales(x.abs().mean(0), best / grids_num))


def test_better_than_plain_rounding_where_channels_differ():
    weight, x = layer()
    found = search_column_scales(weight, x.abs().mean(0), x, WeightFormat("int4"))
    assert min(found.losses) <= 0.7 * found.losses[0]
    assert found.losses[0] == pytest.approx(by_hand(weight, x, 7, 1)[0], rel=1e-3)


def test_equal_channels_leave_the_weight_alone():
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    found = search_column_scales(weight, torch.ones(16), torch.eye(16), WeightFormat("int4"))
    assert found.ratio == 0.0
    assert torch.equal(found.scales, torch.ones(16))


def test_scales_are_centred_and_bounded():
    scales = column_scales(torch.tensor([0.01, 1.0, 30.0]), 0.95)
    assert float(scales.max() * scales.min()) == pytest.approx(1.0)
    scales = column_scales(torch.tensor([0.0, 1e-9, 1.0, 1e30]), 0.95)
    assert bool(torch.isfinite(scales).all()) and float(scales.min()) >= 0.99e-4


def test_the_weight_is_only_read():
    weight, x = layer()
    copy = weight.clone()
    search_column_scales(weight, x.abs().mean(0), x, WeightFormat("mxfp4_e2m1", True, "group", 32))
    assert torch.equal(weight, copy)


def test_bad_input():
    weight, x = layer()
    rounding = WeightFormat("int4")
    for bad_weight, bad_x in ((weight * torch.nan, x), (weight, x / 0.0)):
        with pytest.raises(RuntimeError, match="inf or NaN"):
            search_column_scales(bad_weight, torch.ones(64), bad_x, rounding)
    with pytest.raises(RuntimeError, match="finite error"):
        search_column_scales(weight, torch.ones(64), x * 1e30, rounding)
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        search_column_scales(weight, torch.ones(64), x, rounding, cancel=cancel)


@pytest.mark.parametrize("strategy", ["tensor", "channel"])
def test_rows_are_rounded_a_few_at_a_time(strategy, monkeypatch):
    """Of one scale a tensor, too: it is that of all rows."""
    weight, x = layer()
    kind = WeightFormat("int4", True, strategy)
    whole = search_column_scales(weight, x.abs().mean(0), x, kind, grids_num=5)
    monkeypatch.setattr(weight_formats, "_CHUNK", 10 * 64)
    apart = search_column_scales(weight, x.abs().mean(0), x, kind, grids_num=5)
    assert apart.losses == pytest.approx(whole.losses, rel=1e-5)
    assert torch.equal(apart.scales, whole.scales)
