"""Groups are right when a model without their channels computes what it did with zeros there.

The reference zeroes what consumers read by hooks on the dense model; channels are taken at random.
"""

from __future__ import annotations

from functools import cache

import channel_models
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from workbench.engine.flows.channel_checks import RemovalCheck, without
from workbench.engine.flows.channel_surgery import Removal
from workbench.engine.graph.capture import Captured, capture
from workbench.engine.graph.channel_groups import ChannelGroup, ChannelGroups, channel_groups
from workbench.engine.graph.channel_map import channel_map

TOKENS = {"gqa": channel_models.GQABlock}
EXACT = [*channel_models.IMAGES, *TOKENS]


@cache
def captured(name: str) -> Captured:
    torch.manual_seed(0)
    if name in TOKENS:
        return capture(
            channel_models.unsettle(TOKENS[name]()), torch.randint(0, 11, (2, 6)), dynamic=False
        )
    kind = channel_models.IMAGES.get(name) or channel_models.GroupNormNet
    model = channel_models.unsettle(kind())
    return capture(model, torch.randn(2, 3, 8, 8), dynamic=False)


@cache
def groups_of(name: str) -> ChannelGroups:
    return channel_groups(channel_map(captured(name)))


def at_random(group: ChannelGroup, ratio: float, seed: int) -> Removal:
    """About ``ratio`` of the units, the same share of every cell."""
    generator = np.random.default_rng(seed)
    steps = round(group.steps * ratio)
    units = []
    for cell in group.cells:
        units += generator.permutation(cell)[: steps * len(cell) // group.steps].tolist()
    return Removal(group, tuple(sorted(units)))


def zeroed_output(model: nn.Module, removals: list[Removal], *args: Tensor) -> Tensor:
    """What a dense model gives when consumers read zeros in place of removed channels."""
    modules = dict(model.named_modules())
    handles = []
    for removal in removals:
        for member in removal.group.members:
            if member.role != "consumer":
                continue
            axis = -1 if isinstance(modules[member.module], nn.Linear) else 1
            gone = list(member.channels(removal.units))

            def hook(module: nn.Module, given: tuple[Tensor], axis: int = axis, gone=gone):
                return (given[0].index_fill(axis, torch.tensor(gone, dtype=torch.long), 0.0),)

            handles.append(modules[member.module].register_forward_pre_hook(hook))
    with torch.no_grad():
        output = model(*args)
    for handle in handles:
        handle.remove()
    return output


def relative_error(made: Tensor, expected: Tensor) -> float:
    return float((made - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", EXACT)
def test_pruned_at_random_equals_zeroed_channels(name: str, seed: int) -> None:
    found = captured(name)
    removals = [at_random(group, 0.3, seed) for group in groups_of(name).groups]
    accepted = RemovalCheck(found).accept(removals)
    assert not accepted.refused
    pruned = without(found.module, accepted.removals, accepted.sizes)
    with torch.no_grad():
        made = pruned(*found.args)
    assert any(removal.units for removal in removals)
    assert relative_error(made, zeroed_output(found.module, removals, *found.args)) < 1e-5


@pytest.mark.parametrize("name", EXACT)
def test_attributes_agree_with_the_tensors(name: str) -> None:
    found = captured(name)
    removals = [at_random(group, 0.5, 3) for group in groups_of(name).groups]
    accepted = RemovalCheck(found).accept(removals)
    for module in without(found.module, accepted.removals, accepted.sizes).modules():
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            assert module.weight.shape[:2] == (
                module.in_channels,
                module.out_channels // module.groups,
            )
        elif isinstance(module, nn.modules.conv._ConvNd):
            assert module.weight.shape[:2] == (
                module.out_channels,
                module.in_channels // module.groups,
            )
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean.shape == (module.num_features,)


EXPECTED = {
    # Producers that are removed together, counted by hand.
    "reference": [{"c0", "c1"}, {"c2"}],
    "mobilenet": [
        {"stem.0", "project.0"}, {"expand.0", "excite.up"}, {"excite.down"}, {"head"},
    ],
    "unet": [{"enter"}, {"down.0"}, {"deep"}, {"up"}, {"join"}, {"last"}, {"shuffle"}],
    "convnext": [{"expand"}],
    "vit": [{"attention.qkv"}, {"mlp.0"}],
    "gqa": [{"attention.q_proj", "attention.k_proj", "attention.v_proj"}, {"gate", "up"}],
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_coupled_producers(name: str) -> None:
    found = [{member.module for member in g.producers} for g in groups_of(name).groups]
    assert found == EXPECTED[name]


def test_units_of_attention_are_whole_heads() -> None:
    heads = groups_of("vit").groups[0]
    assert heads.size == 4
    qkv = heads.producers[0]
    # 3 times 16 outputs, four heads of four: a head has its part of each third.
    assert qkv.channels({1}) == (4, 5, 6, 7, 20, 21, 22, 23, 36, 37, 38, 39)
    bias = next(m for m in heads.members if m.name == "bias" and m.module == "attention")
    assert (bias.axis, bias.channels({1})) == (1, (1,))


def test_grouped_queries_go_with_their_keys() -> None:
    heads = groups_of("gqa").groups[0]
    queries, keys, values = heads.producers
    assert (queries.module, keys.module, values.module) == (
        "attention.q_proj", "attention.k_proj", "attention.v_proj",
    )  # fmt: skip
    # Eight heads of four share four of keys: two of the former with one of the latter.
    assert queries.channels({1}) == tuple(range(8, 16))
    assert keys.channels({1}) == values.channels({1}) == tuple(range(4, 8))


def test_a_dense_block_reads_at_true_offsets() -> None:
    groups = groups_of("densenet").groups
    reading = {
        group.producers[0].module: {
            m.module: m.channels(range(group.size)) for m in group.members if m.role == "consumer"
        }
        for group in groups
    }
    assert reading["stem"]["transitions.0"] == tuple(range(6))
    assert reading["blocks.0.0.2"]["transitions.0"] == tuple(range(6, 10))
    assert reading["blocks.0.1.2"]["transitions.0"] == tuple(range(10, 14))
    # The last one is flattened: 2 x 2 positions of each of ten channels.
    assert reading["transitions.1"]["fc"] == tuple(range(40))


def test_halves_of_a_shuffle_lose_the_same_number() -> None:
    first = groups_of("shufflenet").groups[0]
    for step in range(1, first.steps):
        removal = at_random(first, step / first.steps, step)
        stem = first.producers[0]
        gone = np.isin(stem.units, removal.units)
        assert gone[:8].sum() == gone[8:].sum() == step * 16 // first.steps / 2


def test_group_norm_against_normalisation_of_what_is_left() -> None:
    found = captured("groupnorm")
    group = groups_of("groupnorm").groups[0]
    assert [len(cell) for cell in group.cells] == [4, 4, 4]
    removal = at_random(group, 0.5, 0)
    accepted = RemovalCheck(found).accept([removal])
    model = found.module
    kept = [i for i in range(12) if i not in removal.units]
    with torch.no_grad():
        made = without(model, accepted.removals, accepted.sizes)(*found.args)
        x = model.a(*found.args)[:, kept]
        parts = x.reshape(2, 3, 2, 64)
        mean, var = parts.mean((2, 3), keepdim=True), parts.var((2, 3), keepdim=True, correction=0)
        x = ((parts - mean) / (var + model.norm.eps).sqrt()).reshape(2, 6, 8, 8)
        x = x * model.norm.weight[kept, None, None] + model.norm.bias[kept, None, None]
        x = nn.functional.conv2d(x.relu(), model.b.weight[:, kept], model.b.bias, padding=1)
        expected = model.out(model.instance(x))
    assert relative_error(made, expected) < 1e-5


@pytest.mark.parametrize(("name", "producer"), [("convnext", "stem"), ("vit", "patches")])
def test_layer_norm_keeps_its_width_unless_asked(name: str, producer: str) -> None:
    found = captured(name)
    assert "normalises" in groups_of(name).reasons[producer]
    opened = channel_groups(channel_map(found, through_layer_norm=True))
    width = next(g for g in opened.groups if g.producers[0].module == producer)
    removal = at_random(width, 0.5, 0)
    accepted = RemovalCheck(found).accept([removal])
    assert not accepted.refused
    with torch.no_grad():
        made = without(found.module, accepted.removals, accepted.sizes)(*found.args)
    assert made.shape == (2, 5) and bool(torch.isfinite(made).all())


class Frozen(nn.Module):
    """Every layer here must stay, each for its own reason."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(4, 4, 1)
        self.lonely = nn.Conv2d(4, 4, 1)
        self.sorted = nn.Conv2d(4, 6, 1)
        self.one = nn.Conv2d(6, 6, 1)
        self.other = nn.Conv2d(6, 6, 1)
        self.other.weight = self.one.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 5, 1))
        self.read = nn.Conv2d(6, 6, 1)
        self.padded = nn.Conv2d(6, 4, 1)
        self.soft = nn.Conv2d(4, 4, 1)
        self.out = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.twice(self.twice(x))
        x = self.sorted(x * x.new_ones(1, 4, 1, 1) + x).sort(1).values
        x = self.other(self.one(x)) + self.lonely(x[:, :4]).mean(1, keepdim=True)
        y = self.normed(x)
        x = self.read(x) * self.read.weight.sum()
        x = self.soft(torch.softmax(self.padded(x), 1))
        return self.out(x), y


def test_what_cannot_be_understood_stays_and_says_why() -> None:
    torch.manual_seed(0)
    found = channel_groups(channel_map(capture(Frozen(), torch.randn(2, 4, 4, 4), dynamic=False)))
    assert [[m.module for m in g.producers] for g in found.groups] == [["soft"]]
    words = {
        "twice": "called 2 times",
        "lonely": "mean",
        "sorted": "sort of the model itself is not understood",
        "one": "shared with other",
        "other": "shared with other",
        "padded": "softmax",
        "out": "output of the model",
    }
    assert {n: w for n, w in words.items() if w not in found.reasons[n]} == {}


class PaddedChannels(nn.Module):
    """Channels are padded (D-23): the next layer reads the padding first."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 1)
        self.b = nn.Conv2d(9, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(nn.functional.pad(self.a(x), (0, 0, 0, 0, 2, 1)))


def test_padding_of_channels_shifts_them() -> None:
    found = capture(PaddedChannels().eval(), torch.randn(2, 3, 4, 4), dynamic=False)
    (group,) = channel_groups(channel_map(found)).groups
    reader = next(m for m in group.members if m.role == "consumer")
    assert reader.channels(range(6)) == tuple(range(2, 8))
    removal = at_random(group, 0.5, 0)
    with torch.no_grad():
        made = without(found.module, [removal])(*found.args)
    assert relative_error(made, zeroed_output(found.module, [removal], *found.args)) < 1e-5


def test_switching_a_producer_off_frees_nothing_of_its_group() -> None:
    mapped = channel_map(captured("reference"))
    only = channel_groups(mapped, ["c0", "c2"])
    assert [[m.module for m in g.producers] for g in only.groups] == [["c2"]]
    assert "c1, which is switched off" in only.reasons["c0"]
    assert only.reasons["c1"] == "it is switched off"


class LiteralSizes(nn.Module):
    """Its forward holds a size as a number, so it cannot run with fewer channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(8, 6, 1)
        self.c = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x.view(-1, 2, 4, 4, 4).transpose(1, 2).reshape(-1, 8, 4, 4)
        return self.c(self.b(x).relu())


def test_a_size_written_into_the_code_refuses_its_group_only() -> None:
    found = capture(LiteralSizes().eval(), torch.randn(2, 3, 4, 4), dynamic=False)
    removals = [at_random(g, 0.5, 0) for g in channel_groups(channel_map(found)).groups]
    accepted = RemovalCheck(found).accept(removals)
    assert [r.group.producers[0].module for r in accepted.removals] == ["b"]
    ((refused, problem),) = accepted.refused
    assert refused.group.producers[0].module == "a" and problem
