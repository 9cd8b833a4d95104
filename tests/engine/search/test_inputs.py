"""What the ranking is computed from: the layers' own calls, kept within a budget."""

import rnn_models
import torch
from torch import nn

from workbench.engine.files.config import default_config
from workbench.engine.flows.calibration import Calibration
from workbench.engine.flows.layer_data import LayerCall
from workbench.engine.graph.capture import capture
from workbench.engine.search.inputs import LayerInputs
from workbench.engine.search.models import from_calibration
from workbench.engine.search.sensitivity import MSESensitivity


class Answers(nn.Module):
    """A layer whose answer says what it was called with."""

    def forward(self, input, state=None, *, factor=1.0):
        return input * factor + (0 if state is None else state.sum())


def measured(inputs, name, twin=None):
    """Mean squared answer of layer ``name`` over the calls kept."""
    float_side = nn.ModuleDict({name: Answers()})
    zero = nn.Module()
    zero.forward = lambda input, *args, **kwargs: torch.zeros_like(input)
    return inputs.sensitivities(
        float_side, nn.ModuleDict({name: twin or zero}), [name], MSESensitivity()
    )[name]


def test_a_recurrent_layer_is_compared_from_its_own_state():
    net = rnn_models.model("LSTM")
    x, h, c = rnn_models.data(net, 4)
    h, c = h * 3, c * 3
    captured = capture(net, (x, h, c))
    inputs = LayerInputs(2**20)
    calibration = Calibration(captured, default_config(captured.layers), on_layer_input=inputs.see)
    with torch.no_grad():
        calibration.model(x, h, c)
    factors = from_calibration(calibration)
    quantized = factors.quantized(["rnn"])
    with torch.no_grad():
        pairs = zip(
            torch.utils._pytree.tree_leaves(net.rnn(x, (h, c))),
            torch.utils._pytree.tree_leaves(quantized.rnn(x, (h, c))),
            strict=True,
        )
        errors = torch.cat([(a - b).double().square().reshape(-1) for a, b in pairs])
    found = inputs.sensitivities(factors.folded, quantized, ["rnn"], MSESensitivity())["rnn"]
    assert abs(found - float(errors.mean())) <= 1e-5 * found


def test_every_argument_is_kept_however_it_was_given():
    inputs = LayerInputs(2**20)
    x, state = torch.ones(2, 3), torch.full((4,), 2.0)
    for name, call in {
        "plain": LayerCall(x, (x,), {}),
        "state": LayerCall(x, (x, state), {}),
        "words": LayerCall(x, (), {"input": x, "state": state, "factor": 0.5}),
    }.items():
        inputs.see(name, call)
    # The loader may use its tensors again.
    x.zero_()
    state.zero_()
    assert [measured(inputs, n) for n in ("plain", "state", "words")] == [1.0, 81.0, 8.5**2]
    assert not inputs.truncated


def test_the_budget_holds_for_every_tensor():
    x = torch.arange(64.0).reshape(64, 1)
    inputs = LayerInputs(64 * 8)
    inputs.see("part", LayerCall(x, (x,), {}))
    # Two samples of eight bytes in all: a 64th of the budget.
    assert inputs.truncated == {"part"}
    assert measured(inputs, "part") == (0 + 1) / 2
    # A reader of the same tensor takes what is there, and costs nothing.
    left = inputs._budget
    inputs.see("reader", LayerCall(x, (x,), {}))
    assert inputs._budget == left and measured(inputs, "reader") == (0 + 1) / 2
    # A state belongs to the whole batch.
    state = torch.ones(2)
    inputs.see("whole", LayerCall(x, (x, state), {}))
    assert inputs._budget == left - 64 * 4 - 2 * 4
    assert measured(inputs, "whole") == float(((x + 2) ** 2).mean())
    inputs.see("late", LayerCall(x + 1, (x + 1, torch.ones(200)), {}))
    assert "late" in inputs.truncated and measured(inputs, "late") == 0.0
