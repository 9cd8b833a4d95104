import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from workbench.engine.files.config import default_config
from workbench.engine.graph.capture import capture


class Subclass(nn.Conv2d):
    pass


class Everything(nn.Module):
    """The model of the acceptance list of chapter 10 section 15, row "Layers"."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.conv1 = nn.Conv2d(4, 4, 1)
        self.unused = nn.Conv2d(4, 4, 1)
        self.circular = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.tied_a = nn.Conv2d(4, 4, 1)
        self.tied_b = nn.Conv2d(4, 4, 1)
        self.tied_b.weight = self.tied_a.weight
        self.line_a = nn.Conv1d(4, 4, 1)
        self.line_b = nn.Conv1d(4, 4, 1)
        self.line_b.weight = self.line_a.weight
        self.volume = nn.Conv3d(1, 1, 2, dilation=(2, 1, 1))
        self.volume_wide = nn.Conv3d(1, 1, 2, dilation=(1, 2, 2))
        self.line = nn.Conv1d(4, 4, 3)
        self.line_up = nn.ConvTranspose1d(4, 4, 2)
        self.line_single = nn.Conv1d(4, 4, 1)
        self.volume_single = nn.Conv3d(1, 1, 1)
        self.vector = nn.Linear(4, 4)
        self.single = nn.Conv2d(4, 4, 1)
        self.keyword = nn.Conv2d(4, 4, 1)
        self.attribute = nn.Conv2d(4, 4, 1)
        self.sub = Subclass(4, 4, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.functional = nn.Linear(4, 4)
        self.direct = nn.Linear(4, 4)
        self.dead = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.conv(self.conv1(self.conv(x)))
        x = self.circular(x)
        x = self.tied_b(self.tied_a(x))
        x = self.single(x[0]) + x
        x = self.keyword(input=x)
        x = self.attribute(x) * self.attribute.weight.mean()
        x = self.sub(x)
        v = self.volume(x.unsqueeze(1)).mean() + self.volume_wide(x.unsqueeze(1)).mean()
        v = v + self.volume_single(x[:1]).mean()
        y = self.line_up(self.line(self.line_b(self.line_a(x.flatten(2))))).mean()
        y = y + self.line_single(x[0].flatten(1)).mean() + self.vector(x[0, :, 0, 0]).mean()
        x = self.pool(x).flatten(1) + v + y
        x = F.linear(x, self.functional.weight)
        x = self.direct.forward(x)
        self.dead(x)
        return self.head(x)


@pytest.fixture(scope="module")
def layers():
    return capture(Everything(), torch.randn(2, 4, 6, 6)).layers


def test_only_the_eligible_layers_are_found(layers):
    eligible = [name for name, info in layers.items() if info.eligible]
    assert eligible == ["conv1", "keyword", "volume_wide", "line", "line_up", "head"]


def test_a_three_dimensional_convolution_is_symmetric(layers):
    config = default_config(layers, activation_offset=True)
    assert not config.asymmetric("volume_wide")
    assert config.asymmetric("line")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("conv", "called 2 times"),
        ("unused", "never executed"),
        ("circular", "padding_mode 'circular'"),
        ("tied_a", "shared with tied_b.weight"),
        ("tied_b", "shared with tied_a.weight"),
        ("line_a", "shared with line_b.weight"),
        ("line_b", "shared with line_a.weight"),
        ("volume", "dilation 2 along depth"),
        ("single", "unbatched"),
        ("line_single", "unbatched (2 dimensions instead of 3)"),
        ("volume_single", "unbatched (4 dimensions instead of 5)"),
        ("vector", "unbatched (1 dimensions instead of 2)"),
        ("attribute", "read outside its own call"),
        ("sub", "a subclass of Conv2d"),
        ("functional", "used functionally"),
        ("direct", "used functionally"),
        ("dead", "result is not used"),
    ],
)
def test_every_other_layer_says_why(layers, name, words):
    assert not layers[name].eligible
    assert words in layers[name].reason


def test_layers_come_in_the_order_of_execution(layers):
    executed = [name for name, info in layers.items() if info.order >= 0]
    assert executed[:5] == ["conv", "conv1", "circular", "tied_a", "tied_b"]
    assert [layers[name].order for name in executed] == list(range(len(executed)))
    assert layers["unused"].order == -1
    assert layers["unused"].calls == 0
    assert layers["conv"].calls == 2
    assert "pool" not in layers


def test_shapes_and_costs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.depthwise = nn.Conv2d(4, 8, 3, padding="same", groups=4, bias=False)
            self.up = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
            self.pool = nn.AvgPool2d(2)
            self.tokens = nn.Linear(6, 5)

        def forward(self, x):
            x = self.pool(self.up(self.depthwise(x)))
            return self.tokens(x.flatten(2).transpose(1, 2))

    layers = capture(Net(), torch.randn(3, 4, 5, 5)).layers
    assert all(info.eligible for info in layers.values())
    depthwise, up, pool, tokens = layers.values()
    assert depthwise.depthwise
    assert not depthwise.has_bias
    assert depthwise.macs == 25 * 8 * 9
    assert depthwise.parameters == 72
    # Every input element meets Cout/groups · k² weights.
    assert up.macs == 25 * 8 * 3 * 4
    assert (up.in_channels, up.out_channels, up.groups) == (8, 6, 2)
    assert up.weight_shape == (8, 3, 2, 2)
    assert (pool.macs, pool.parameters, pool.has_weight) == (0, 0, False)
    assert (pool.in_channels, pool.output_shape) == (6, (0, 6, 5, 5))
    assert tokens.macs == 25 * 6 * 5
    assert tokens.input_shape == (0, 25, 6)


def test_one_module_under_two_names_counts_as_called_twice():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model.add_module("2", model[0])
    layers = capture(model, torch.randn(2, 2)).layers
    assert list(layers) == ["0"]
    assert layers["0"].calls == 2


def test_a_layer_within_a_block_called_twice_is_reused():
    block = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    layers = capture(nn.Sequential(block, block, nn.Linear(2, 2)), torch.randn(2, 2)).layers
    assert layers["0.0"].reason == "it is called 2 times"
    assert layers["2"].eligible


def test_computed_weights():
    plain = nn.Sequential(nn.utils.weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2))
    assert "computed" in capture(plain, torch.randn(2, 2)).layers["0"].reason
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2))
    assert "parametrised" in capture(model, torch.randn(2, 2)).layers["0"].reason


def test_weights_tied_to_an_embedding():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.embed(ids))

    layers = capture(Tied(), torch.zeros(1, 3, dtype=torch.long)).layers
    assert "shared with embed.weight" in layers["head"].reason


def test_attention_recurrence_and_divisors_are_listed_with_their_reason():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.rnn = nn.GRU(4, 4, batch_first=True)
            self.pool = nn.AvgPool2d(2, divisor_override=3)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            x = self.rnn(self.attention(x, x, x, need_weights=False)[0])[0]
            return self.head(self.pool(x.unsqueeze(1)).flatten(2))

    layers = capture(Net(), torch.randn(2, 4, 4)).layers
    assert "MultiheadAttention is not handled" in layers["attention"].reason
    assert "subclass of Linear" in layers["attention.out_proj"].reason
    assert "without an initial state" in layers["rnn"].reason
    assert "divisor_override" in layers["pool"].reason
    assert layers["head"].eligible
