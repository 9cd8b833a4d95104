"""Collecting what layers read and give: partial forwards, byte budgets, models with bad manners."""

import pytest
import torch
from torch import nn

from workbench.engine.errors import Cancelled
from workbench.engine.events import CancelToken
from workbench.engine.flows.layer_data import FloatOutputs, collect_inputs


class Counting(nn.Linear):
    calls = 0

    def forward(self, input):
        self.calls += 1
        return super().forward(input)


class Chain(nn.Module):
    """Writes to its input and to a layer's output, and swallows exceptions."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Counting(4, 4) for _ in range(4))

    def forward(self, x, *, shift=0.0):
        x.mul_(2.0)
        for layer in self.layers:
            try:
                x = layer(input=x)
            except Exception:
                x = torch.zeros_like(x)
            x.add_(shift)
        return x


NAMES = [f"layers.{i}" for i in range(4)]


@pytest.fixture
def chain():
    torch.manual_seed(0)
    return Chain().eval()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [((torch.randn(3, 4, generator=generator),), {"shift": 0.5}) for _ in range(2)]


def expected(chain, batches):
    """Inputs and outputs of every layer, by hand."""
    inputs, outputs = [[] for _ in NAMES], [[] for _ in NAMES]
    for (x,), kwargs in batches:
        x = x * 2
        for i, layer in enumerate(chain.layers):
            inputs[i].append(x)
            y = x @ layer.weight.detach().T + layer.bias.detach()
            outputs[i].append(y)
            x = y + kwargs["shift"]
    return inputs, outputs


def copied(name, output):
    return output.clone()


def test_inputs_are_those_of_the_layer_and_the_forward_stops_there(chain, batches):
    inputs, _ = expected(chain, batches)
    kept = [x.clone() for (x,), _ in batches]
    for i, name in enumerate(NAMES):
        calls = collect_inputs(chain, name, batches)
        for call, wanted in zip(calls, inputs[i], strict=True):
            assert torch.allclose(call.value, wanted, atol=1e-6)
    # Layer 3 ran in no forward at all, layer 0 in those for layers 1 to 3.
    assert [layer.calls for layer in chain.layers] == [6, 4, 2, 0]
    assert all(torch.equal(x, (y,)[0]) for x, ((y,), _) in zip(kept, batches, strict=True))


@pytest.mark.parametrize(
    ("layers_in_budget", "calls"), [(4, [2, 2, 2, 2]), (2, [4, 4, 3, 2]), (0, [8, 6, 4, 2])]
)
def test_outputs_come_with_as_few_forwards_as_fit(chain, batches, layers_in_budget, calls):
    _, outputs = expected(chain, batches)
    budget = layers_in_budget * 2 * 3 * 4 * 4
    source = FloatOutputs(chain, NAMES, batches, copied, byte_budget=budget)
    for i, name in enumerate(NAMES):
        for got, wanted in zip(source.take(name), outputs[i], strict=True):
            assert torch.allclose(got, wanted, atol=1e-6)
    # One more call where the first batch finds out that a layer is too much.
    assert [layer.calls for layer in chain.layers] <= [c + 2 for c in calls]
    assert not any(layer._forward_hooks for layer in chain.layers)


def test_a_layer_that_is_not_reached_is_named(chain, batches):
    chain.spare = nn.Linear(4, 4)
    with pytest.raises(RuntimeError, match=r"layer spare: .*batch 1"):
        collect_inputs(chain, "spare", batches)
    with pytest.raises(RuntimeError, match="layer spare"):
        FloatOutputs(chain, ["spare"], batches, copied, byte_budget=0).take("spare")


def test_cancel_leaves_no_hooks(chain, batches):
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        collect_inputs(chain, "layers.1", batches, cancel=token)
    assert not chain.layers[1]._forward_pre_hooks
