from __future__ import annotations

from typing import Any

import pytest
import torch
from distill_case import Chain, Golden
from torch import Tensor, nn

from workbench.engine.flows.distill_groups import Groups, chain_problems, find_groups
from workbench.engine.graph.capture import Captured, capture


@pytest.fixture(scope="module")
def golden() -> Captured:
    return capture(Golden().eval(), torch.randn(2, 3, 8, 8), dynamic=False)


def named(groups: Groups) -> str:
    return " ".join(f"[{','.join(chain)}]" for chain in groups.chains)


def groups_of(model: nn.Module, *shape: int, **options: Any) -> str:
    captured = capture(model.eval(), torch.randn(*shape), dynamic=False)
    return named(find_groups(captured, **options))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "[c1,b1,r] [c2,b2,r] [c3,b3] [fc,sm]"),
        ({"group_size": 2}, "[c1,b1,r] [c2,b2,r,c3,b3] [fc,sm]"),
        ({"group_size": 3}, "[c1,b1,r] [c2,b2,r,c3,b3] [fc,sm]"),
        ({"given": [("c1", "c2")]}, "[c1,b1,r,c2] [c3,b3] [fc,sm]"),
        ({"given": [("c1", "c3")]}, "[c1,b1,r,c2,b2,r,c3] [fc,sm]"),
        # The reference loses c2 here without a word (D6).
        ({"given": [("b1", "c2")]}, "[c1] [b1,r,c2] [c3,b3] [fc,sm]"),
        ({"given": [("fc", "fc")]}, "[c1,b1,r] [c2,b2,r] [c3,b3] [fc]"),
    ],
)
def test_the_golden_network(golden: Captured, options: dict[str, Any], expected: str) -> None:
    assert named(find_groups(golden, **options)) == expected


def test_a_batch_norm_that_loses_its_layer_is_said(golden: Captured) -> None:
    assert find_groups(golden).warnings == ()
    (warning,) = find_groups(golden, given=[("c1", "c2")]).warnings
    assert "b2 is not in the group of c2" in warning


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([("c1", "fc")], "'c1' to 'fc' is 2 routes"),
        ([("c3", "c1")], "0 routes"),
        ([("c1", "nothing")], "0 routes"),
        ([("nothing", "c1")], "0 routes"),
        ([("r", "c2")], "'r' called 2 times"),
        ([("b3", "fc")], "an operator of the model's own code on the route"),
        ([("c1", "c2"), ("c2", "c3")], "with c2 in another group"),
        ([("c1", "fc"), ("c3", "c1")], "2 problems"),
    ],
)
def test_groups_that_cannot_be_given(
    golden: Captured, given: list[tuple[str, str]], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        find_groups(golden, given=given)


def test_two_given_groups_may_share_an_activation(golden: Captured) -> None:
    groups = find_groups(golden, given=[("c1", "r"), ("c2", "b3")])
    assert named(groups) == "[c1,b1,r] [c2,b2,r,c3,b3] [fc,sm]"


def test_the_bias_of_a_linear_layer_belongs_to_it() -> None:
    assert groups_of(Chain(), 2, 6, group_size=4) == "[l1,a,l2,t]"
    assert groups_of(Chain(), 2, 5, 6, group_size=4) == "[l1,a,l2,t]"


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l, self.b1d, self.r = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()
        self.c1, self.sync, self.g = nn.Conv2d(2, 2, 1), nn.SyncBatchNorm(2), nn.GELU()
        self.c2, self.twice = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        y = self.g(self.sync(self.c1(y)))
        return self.r(self.b1d(self.l(x))), self.twice(self.twice(self.c2(y)))


def test_other_normalisations_leave_the_layer_alone() -> None:
    """The reference has no group at all for such layers, and skips a SyncBatchNorm (D7)."""
    example = (torch.randn(2, 4), torch.randn(2, 2, 4, 4))
    captured = capture(Norms().eval(), example, dynamic=False)
    assert named(find_groups(captured)) == "[c1,sync] [l] [c2]"
    extended = named(find_groups(captured, extended_types=True))
    assert "[c1,sync,g]" in extended
    with pytest.raises(ValueError, match="'twice' called more than once"):
        find_groups(captured, given=[("c2", "twice")])


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c1, self.b1, self.act = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU()
        self.c2, self.b2 = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.b2(self.c2(self.act(self.b1(self.c1(x))))))


def test_every_convolution_of_residual_blocks_is_in_one_group() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), *(Block(4) for _ in range(4)))
    captured = capture(model.eval(), torch.randn(2, 3, 4, 4), dynamic=False)
    for size in (1, 2, 9):
        chains = find_groups(captured, group_size=size).chains
        members = [name for chain in chains for name in chain]
        convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
        assert sorted(n for n in members if n in convolutions) == sorted(convolutions)
        assert all(len(chain) <= 3 * size for chain in chains)


def test_what_is_no_chain_in_the_graph(golden: Captured) -> None:
    good = [["c1", "b1", "r"], ["c2"], ["c1", "b1", "r", "c2", "b2", "r", "c3"]]
    assert chain_problems(golden, good) == []
    bad = [["c1", "c2"], ["b1", "c1"], ["c3", "b3", "fc"]]
    problems = chain_problems(golden, good + bad)
    assert [problem.value for problem in problems] == [f"{chain}, not a chain" for chain in bad]
