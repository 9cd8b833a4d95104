import torch
from torch import nn

from workbench.engine.graph.capture import capture


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.shift = nn.Parameter(torch.randn(1, 4))

    def forward(self, x):
        y = self.fc(x) + self.shift
        y = y + x
        y += self.fc.bias.new_ones(4) + y
        y = y + 1
        return torch.cat([y, x], 1)[:, :4]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()
        self.embed = nn.Embedding(5, 4)

    def forward(self, x, ids):
        x = self.block(self.block(x))
        both = ids + ids
        return torch.add(x, self.embed(both))


def test_taps_are_sums_and_concats_of_the_models_own_code():
    captured = capture(Net(), (torch.randn(2, 4), torch.zeros(2, dtype=torch.long)))
    assert [tap.key for tap in captured.taps] == [
        "block#add1",
        "block#add3",
        "block#cat0",
        "block#add5",
        "block#add7",
        "block#cat1",
        "#add1",
    ]
    assert not {tap.key for tap in captured.taps} & set(dict(captured.module.named_modules()))
