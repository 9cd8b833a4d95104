"""LSTM and GRU in the captured graph: which can be quantised, their gates, shapes and costs."""

import pytest
import rnn_models
import torch
from torch import nn

from workbench.engine.errors import CaptureError
from workbench.engine.graph.capture import capture
from workbench.engine.graph.rnn import (
    from_onnx_order,
    joined_weight,
    set_joined_weight,
    to_onnx_order,
)

EVERY = [("LSTM", True), ("LSTM", False), ("GRU", True), ("GRU", False)]


def test_gates_go_to_onnxs_order_and_back():
    # Two units a gate, each value tells gate and unit: torch i, f, g, o and r, z, n.
    lstm = torch.tensor([10, 11, 20, 21, 30, 31, 40, 41])
    assert to_onnx_order("LSTM", lstm).tolist() == [10, 11, 40, 41, 20, 21, 30, 31]  # i o f c
    gru = torch.tensor([10, 11, 20, 21, 30, 31])
    assert to_onnx_order("GRU", gru).tolist() == [20, 21, 10, 11, 30, 31]  # z r h
    for kind, values in (("LSTM", lstm), ("GRU", gru)):
        assert torch.equal(from_onnx_order(kind, to_onnx_order(kind, values)), values)


def test_replacing_the_weights_changes_what_the_layer_computes():
    layer = nn.LSTM(3, 2)
    x = torch.ones(4, 1, 3)
    before = layer.weight_ih_l0
    kept = before.detach().clone()
    set_joined_weight(layer, torch.zeros(8, 5))
    nn.init.zeros_(layer.bias_ih_l0)
    nn.init.zeros_(layer.bias_hh_l0)
    assert not layer(x)[0].any()
    assert joined_weight(layer).shape == (8, 5)
    assert torch.equal(before, kept)


@pytest.mark.parametrize(("kind", "batch_first"), EVERY)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_layer_with_a_given_state_is_eligible(kind, batch_first, batch):
    net = rnn_models.model(kind, batch_first)
    captured = capture(net, rnn_models.data(net, batch))
    info = captured.layers["rnn"]
    assert info.eligible, info.reason
    assert captured.dynamic_batch
    gates = 4 if kind == "LSTM" else 3
    assert (info.in_channels, info.out_channels, info.has_bias) == (6, 4, True)
    assert info.weight_shape == (gates * 4, 6 + 4)
    assert info.macs == 5 * gates * 4 * (6 + 4)
    assert info.parameters == gates * 4 * (6 + 4 + 2)
    assert info.channel_wise
    assert captured.layers["fc"].macs == 5 * 4 * 3
    assert 0 in info.input_shape


class Other(nn.Module):
    """One layer, called in the way that ``call`` says."""

    def __init__(self, call, **options):
        super().__init__()
        self.call = call
        self.rnn = nn.GRU(6, 4, batch_first=True, **options)
        self.fc = nn.Linear(4, 2)

    def forward(self, x, h):
        return self.call(self, x, h)


def tied(net):
    net.other = nn.Linear(4, 12)
    net.other.weight = net.rnn.weight_hh_l0
    return net


def subclass(net):
    class Mine(nn.GRU):
        pass

    net.rnn = Mine(6, 4, batch_first=True)
    return net


def packed(net, x, h):
    lengths = torch.tensor([5, 5])
    sequence = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    return net.fc(net.rnn(sequence, h)[1])


def plain(net, x, h):
    return net.fc(net.rnn(x, h)[0])


CASES = {
    "no state": (lambda n, x, h: n.fc(n.rnn(x)[0]) + h.sum(), None, "without an initial state"),
    "constant state": (
        lambda n, x, h: n.fc(n.rnn(x, torch.ones(1, 2, 4))[0]) + h.sum(),
        None,
        "same for every input",
    ),
    "fixed zeros": (
        lambda n, x, h: n.fc(n.rnn(x, x.new_zeros(1, 2, 4))[0]) + h.sum(),
        None,
        "same for every input",
    ),
    "twice": (lambda n, x, h: n.fc(n.rnn(x, h)[0] + n.rnn(x, h)[0]), None, "called 2 times"),
    "unbatched": (lambda n, x, h: n.fc(n.rnn(x[0], h[:, 0])[0]), None, "unbatched"),
    "dead": (lambda n, x, h: (n.rnn(x, h), n.fc(h))[1], None, "result is not used"),
    "outside": (
        lambda n, x, h: n.fc(n.rnn(x, h)[0]) * n.rnn.weight_hh_l0.mean(),
        None,
        "weight_hh_l0 is read outside its own call",
    ),
    "tied": (plain, tied, "weight_hh_l0 is shared with other.weight"),
    "subclass": (plain, subclass, "a subclass of GRU"),
    "never": (lambda n, x, h: n.fc(h), None, "never executed"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_other_call_says_why(case):
    call, change, words = CASES[case]
    net = Other(call).eval()
    net = change(net) if change else net
    info = capture(net, (torch.randn(2, 5, 6), torch.randn(1, 2, 4))).layers["rnn"]
    assert not info.eligible
    assert words in info.reason


def test_a_packed_sequence_is_refused_by_capture_with_its_place():
    with pytest.raises(CaptureError, match=r"test_rnn\.py.*net\.rnn\(sequence, h\)"):
        capture(Other(packed).eval(), (torch.randn(2, 5, 6), torch.randn(1, 2, 4)))


def test_a_state_of_the_batchs_size_comes_from_the_input():
    net = Other(lambda n, x, h: n.fc(n.rnn(x, x.new_zeros(1, x.shape[0], 4))[0]) + h.sum()).eval()
    assert capture(net, (torch.randn(2, 5, 6), torch.randn(1, 2, 4))).layers["rnn"].eligible


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_layers": 2}, "stacks 2 layers"),
        ({"bidirectional": True}, "bidirectional"),
        ({"proj_size": 2}, "proj_size 2"),
    ],
)
def test_every_other_setting_says_why(options, words):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(6, 4, batch_first=True, **options)

        def forward(self, x, h, c):
            return self.rnn(x, (h, c))[0]

    states = 2 if "proj_size" not in options else 1
    h = torch.randn(states, 2, options.get("proj_size", 4))
    info = capture(Net().eval(), (torch.randn(2, 5, 6), h, torch.randn(states, 2, 4))).layers["rnn"]
    assert not info.eligible
    assert words in info.reason


def test_dropout_and_float16_say_why():
    with pytest.warns(UserWarning, match="dropout"):
        net = rnn_models.model("GRU", dropout=0.5)
    assert "dropout 0.5" in capture(net, rnn_models.data(net, 2)).layers["rnn"].reason
    net = rnn_models.model("LSTM").half()
    half = tuple(value.half() for value in rnn_models.data(net, 2))
    assert "float16" in capture(net, half).layers["rnn"].reason


def test_costs_of_deeper_layers_count_every_weight():
    net = rnn_models.model("GRU", num_layers=2, bidirectional=True)
    info = capture(net, rnn_models.data(net, 2)).layers["rnn"]
    weights = 2 * 12 * (6 + 4) + 2 * 12 * (8 + 4)
    assert info.macs == 5 * weights
