import copy

import pytest
import torch
from torch import nn

from workbench.engine.graph.capture import capture
from workbench.engine.graph.folding import apply_folding, plan_folding


def randomise(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
            if module.running_mean is not None:
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.3, 3)
    return model.eval()


def folded_equals(model: nn.Module, *inputs: torch.Tensor, skip: tuple[str, ...] = ()):
    captured = capture(model, inputs)
    plan = plan_folding(captured, skip)
    with torch.no_grad():
        wanted = copy.deepcopy(model).eval()(*inputs)
        apply_folding(captured.module, plan)
        got = captured.module(*inputs)
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    return captured.module, plan


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("conv", "norm", "shape"),
    [
        (nn.Conv1d, nn.BatchNorm1d, (2, 4, 9)),
        (nn.Conv2d, nn.BatchNorm2d, (2, 4, 9, 9)),
        (nn.Conv3d, nn.BatchNorm3d, (2, 4, 5, 5, 5)),
    ],
)
def test_a_pair_is_folded(conv, norm, shape, bias):
    model = randomise(nn.Sequential(conv(4, 6, 3, groups=2, bias=bias), norm(6), nn.ReLU()))
    weight = model[0].weight.detach().clone()
    module, plan = folded_equals(model, torch.randn(shape))
    assert [(pair.conv, pair.bn) for pair in plan.pairs] == [("0", "1")]
    assert plan.kept == {}
    assert isinstance(module[1], nn.Identity)
    assert torch.equal(model[0].weight, weight)
    assert isinstance(model[1], norm)


def test_folded_values_follow_the_formula():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)).eval()
    with torch.no_grad():
        model[0].weight.fill_(3.0)
        model[0].bias.fill_(1.0)
        model[1].weight.fill_(2.0)
        model[1].bias.fill_(5.0)
        model[1].running_mean.fill_(7.0)
        model[1].running_var.fill_(16.0)
    (pair,) = plan_folding(capture(model, torch.randn(1, 1, 2, 2))).pairs
    # k = 2 / sqrt(16) = 0.5; W' = 3 · 0.5; b' = (1 - 7) · 0.5 + 5
    assert pair.weight.item() == 1.5
    assert pair.bias.item() == 2.0


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 1)


class Graph(nn.Module):
    """A network whose forward is a function of its modules."""

    def __init__(self, run, **modules):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.run(self, x)


def tied() -> dict[str, nn.Module]:
    first, second = conv(), conv()
    second.weight = first.weight
    return {"conv": first, "other": second, "bn": nn.BatchNorm2d(4)}


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module


def overflowing() -> nn.Module:
    model = Graph(lambda s, x: s.bn(s.conv(x)), conv=conv(), bn=nn.BatchNorm2d(4))
    model.bn.running_var.fill_(0.0)
    model.bn.eps = 0.0
    return model


def training_part() -> nn.Module:
    model = randomise(Graph(lambda s, x: s.bn(s.conv(x)), conv=conv(), bn=nn.BatchNorm2d(4)))
    model.bn.train()
    return model


def graph(run, norm=None, **modules) -> nn.Module:
    made = {"conv": conv(), "bn": norm or nn.BatchNorm2d(4), **modules}
    return randomise(Graph(run, **made))


STRAIGHT = lambda s, x: s.bn(s.conv(x))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (graph(lambda s, x: s.bn(s.conv(x)) + s.b2(s.conv(x)), b2=nn.BatchNorm2d(4)), "called 2"),
        (graph(lambda s, x: s.bn(s.other(s.bn(s.conv(x)))), other=conv()), "called 2 times"),
        (randomise(Graph(lambda s, x: s.bn(s.conv(x)) + s.other(x), **tied())), "shares its"),
        (training_part(), "training mode"),
        (graph(STRAIGHT, nn.BatchNorm2d(4, affine=False)), "affine=False"),
        (graph(STRAIGHT, nn.BatchNorm2d(4, track_running_stats=False)), "track_running_stats"),
        (graph(STRAIGHT, nn.SyncBatchNorm(4)), "SyncBatchNorm is not folded"),
        (graph(lambda s, x: (y := s.conv(x)) * s.bn(y)), "used by something else"),
        (graph(lambda s, x: s.bn(s.conv(x)) * s.conv.weight.sum()), "read outside its own call"),
        (graph(lambda s, x: s.bn(s.conv(x)) * s.bn.weight.sum()), "read outside its own call"),
        (graph(lambda s, x: s.bn(torch.relu(s.conv(x)))), "not a convolution's output"),
        (graph(STRAIGHT, conv=nn.ConvTranspose2d(4, 4, 1)), "not a convolution's output"),
        (graph(STRAIGHT, conv=nn.Conv2d(4, 4, 3, padding_mode="reflect", padding=1)), "reflect"),
        (graph(STRAIGHT, conv=hooked(conv())), "hooks"),
        (graph(STRAIGHT, hooked(nn.BatchNorm2d(4))), "hooks"),
        (graph(STRAIGHT, conv=nn.utils.weight_norm(conv())), "computed"),
        (graph(lambda s, x: s.conv(x)), "never executed"),
    ],
)
def test_a_pair_that_must_stay_apart_stays_and_says_why(model, reason):
    captured = capture(model, torch.randn(2, 4, 5, 5))
    plan = plan_folding(captured)
    assert not plan.pairs
    assert reason in plan.kept["bn"]


def test_infinite_results_are_not_folded():
    plan = plan_folding(capture(overflowing(), torch.randn(2, 4, 5, 5)))
    assert not plan.pairs
    assert "inf or NaN" in plan.kept["bn"]


def test_skipped_convolutions_keep_their_batchnorm():
    model = randomise(nn.Sequential(conv(), nn.BatchNorm2d(4), conv(), nn.BatchNorm2d(4)))
    module, plan = folded_equals(model, torch.randn(2, 4, 5, 5), skip=("0",))
    assert [pair.conv for pair in plan.pairs] == ["2"]
    assert "skip_fusion_layers" in plan.kept["1"]
    assert isinstance(module[1], nn.BatchNorm2d)


def test_a_model_wholly_in_training_mode_is_folded_as_its_eval_form():
    model = randomise(nn.Sequential(conv(), nn.BatchNorm2d(4))).train()
    plan = plan_folding(capture(model, torch.randn(2, 4, 5, 5)))
    assert len(plan.pairs) == 1
    assert model[1].training
