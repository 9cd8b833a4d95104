from __future__ import annotations

import torch
from torch import Tensor, nn

from workbench.engine.graph.capture import capture
from workbench.engine.graph.steps import OUTPUT, find_steps

KINDS = ("Conv2d", "Linear", "ReLU", "Identity")


class Diamonds(nn.Module):
    """``depth`` diamonds one after another: 2^depth routes from the first layer to the last."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.start = nn.Linear(4, 4)
        self.left = nn.ModuleList(nn.ReLU() for _ in range(depth))
        self.end = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for relu in self.left:
            x = relu(x) + torch.tanh(x)
        return self.end(x)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.relu, self.drop = nn.Linear(4, 4), nn.ReLU(), nn.Dropout()
        self.b, self.same = nn.Linear(4, 4), nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.relu(self.drop(self.a(x)))
        unused = self.b(x).exp()  # noqa: F841
        y = self.relu(self.same(self.b(x)).view(x.shape[0], -1))
        return y, x


def test_routes_are_counted_not_walked() -> None:
    depth = 40
    captured = capture(Diamonds(depth), torch.randn(2, 4), dynamic=False)
    graph = find_steps(captured, KINDS)
    (start,) = graph.at["start"]
    count, route = graph.routes(start, "end")
    assert count == 2**depth
    assert graph.steps[route[0]].name == "start"
    assert graph.steps[route[-1]].name == "end"
    assert graph.routes(*graph.at["end"], "start") == (0, ())
    assert graph.routes(start, "nothing") == (0, ())
    assert graph.routes(start, "start") == (1, (start,))


def test_what_the_exporter_drops_is_no_step() -> None:
    captured = capture(Mixed(), torch.randn(2, 4))
    graph = find_steps(captured, KINDS)
    (a,) = graph.at["a"]
    first, second = graph.at["relu"]
    # Dropout is passed over; the result nobody reads and the read of a shape count for nothing.
    assert graph.only_consumer(a) == first
    assert graph.steps[second].consumers == (OUTPUT,)
    assert graph.only_consumer(second) is None
    assert "drop" not in graph.at
    assert OUTPUT in graph.steps[first].consumers
    assert graph.only_consumer(first) is None


def test_chains() -> None:
    graph = find_steps(capture(Mixed(), torch.randn(2, 4)), KINDS)
    assert graph.is_chain(["a", "relu"])
    assert graph.is_chain(["relu", "b"])
    assert not graph.is_chain(["relu", "a"])
    assert not graph.is_chain(["a", "b"])
    assert not graph.is_chain([])
