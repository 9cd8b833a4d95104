"""Layers with 2:4 sparsity in training (chapter 40 section 4.2)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from workbench.engine.algorithms.selective_prune import is_two_of_four, selective_mask
from workbench.engine.modules.sparsity.sparse_module import SparseModule

LAYERS = [
    (nn.Linear(8, 4), (3, 8), 1),
    (nn.Conv2d(8, 4, 3, padding=1), (2, 8, 5, 5), 1),
    (nn.Conv2d(16, 4, 3, groups=2), (2, 16, 5, 5), 1),
    (nn.ConvTranspose2d(8, 4, 3, stride=2), (2, 8, 5, 5), 0),
]


@pytest.mark.parametrize(("layer", "shape", "axis"), LAYERS)
def test_computes_with_the_masked_weight(layer: nn.Module, shape, axis: int) -> None:
    layer = copy.deepcopy(layer)
    x = torch.randn(shape)
    mask = selective_mask(layer.weight, axis)
    plain = copy.deepcopy(layer)
    plain.weight = nn.Parameter(layer.weight.detach() * mask)
    sparse = SparseModule(layer)
    torch.testing.assert_close(sparse(x), plain(x))
    assert is_two_of_four(sparse.masked_weight(), axis)
    assert sparse.density == 0.5
    assert torch.equal(sparse.wts_mask, mask)
    assert sparse.wts_mask.dtype == torch.bool

    sparse(x).square().sum().backward()
    plain(x).square().sum().backward()
    assert torch.equal(layer.weight.grad[~mask], torch.zeros(int((~mask).sum())))
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad * mask)


@pytest.mark.parametrize(
    ("update_freq", "due"), [(0, {1}), (1, {1, 2, 3, 4, 5, 6, 7}), (3, {1, 4, 7})]
)
def test_when_the_mask_is_chosen_anew(update_freq: int, due: set[int]) -> None:
    torch.manual_seed(0)
    sparse = SparseModule(nn.Linear(8, 4), update_freq)
    x = torch.randn(2, 8)
    refreshed = set()
    for number in range(1, 8):
        before = sparse.wts_mask.clone()
        with torch.no_grad():  # what was kept becomes what is smallest
            sparse.replaced_module.weight.mul_(torch.where(before, 0.01, 1.0))
        sparse.eval()(x)
        assert torch.equal(sparse.wts_mask, before)
        sparse.train()(x)
        if not torch.equal(sparse.wts_mask, before):
            assert torch.equal(sparse.wts_mask, selective_mask(sparse.replaced_module.weight, 1))
            refreshed.add(number)
    assert refreshed == due
    assert int(sparse.prune_cur_batch) == 7


def test_two_models_do_not_disturb_each_other() -> None:
    def train(other: bool) -> Tensor:
        torch.manual_seed(0)
        models = [nn.Sequential(SparseModule(nn.Linear(8, 8), 2)) for _ in range(2)]
        x = torch.randn(5, 4, 8)
        optimizers = [torch.optim.SGD(m.parameters(), 0.5) for m in models]
        for batch in x:
            for model, optimizer in list(zip(models, optimizers, strict=True))[: 1 + other]:
                optimizer.zero_grad()
                model(batch).square().sum().backward()
                optimizer.step()
        return models[0].state_dict()

    alone, together = train(False), train(True)
    assert alone.keys() == together.keys()
    assert all(torch.equal(alone[key], together[key]) for key in alone)


def test_state_and_checkpoints() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8)
    trained = SparseModule(nn.Linear(8, 4), 3)
    for _ in range(2):
        trained(x)
    with torch.no_grad():
        trained.replaced_module.weight.neg_().add_(0.3)
    state = trained.state_dict()
    assert list(state) == [
        "wts_mask", "prune_cur_batch", "replaced_module.weight", "replaced_module.bias",
    ]  # fmt: skip
    assert len(list(trained.parameters())) == 2
    again = SparseModule(nn.Linear(8, 4), 3)
    again.load_state_dict(state)
    assert torch.equal(again.wts_mask, trained.wts_mask)
    assert torch.equal(again.eval()(x), trained.eval()(x))
    # The count came along: the next forward is the third, which chooses no mask.
    mask = again.wts_mask.clone()
    again.train()(x)
    assert torch.equal(again.wts_mask, mask)
    again(x)
    assert not torch.equal(again.wts_mask, mask)


def reference_state(weight: Tensor, mask: Tensor) -> dict[str, Tensor]:
    return {
        "replaced_module.weight": weight,
        "replaced_module.bias": torch.zeros(4),
        "cur_batch": torch.tensor(2.0),
        "prune_cur_batch": torch.tensor([2.0]),
        "wts_mask": mask,
        "s_rec_flag": torch.tensor(False),
        "wts_scales": torch.tensor([float("nan")]),
        "wts_offsets": torch.tensor([float("nan")]),
    }


def test_checkpoints_of_the_reference() -> None:
    weight = torch.randn(4, 8)
    other = selective_mask(torch.randn(4, 8), 1)
    sparse = SparseModule(nn.Linear(8, 4))
    sparse.load_state_dict(reference_state(weight, other.float()))
    assert torch.equal(sparse.wts_mask, other)
    assert int(sparse.prune_cur_batch) == 2
    # Its mask is NaN until the first forward: then it is the loaded weight's, or a record's.
    unset = torch.full((4, 8), float("nan"))
    sparse = SparseModule(nn.Linear(8, 4))
    sparse.load_state_dict(reference_state(weight, unset))
    assert torch.equal(sparse.wts_mask, selective_mask(weight, 1))
    recorded = SparseModule(nn.Linear(8, 4), mask=other)
    recorded.load_state_dict(reference_state(weight, unset))
    assert torch.equal(recorded.wts_mask, other)
    with pytest.raises(RuntimeError, match="size mismatch"):
        sparse.load_state_dict(reference_state(torch.randn(4, 6), torch.ones(4, 6)))


@pytest.mark.parametrize(("update_freq", "due"), [(0, False), (2, True), (3, False)])
def test_a_restored_count_decides_when_the_next_mask_is_due(update_freq: int, due: bool) -> None:
    sparse = SparseModule(nn.Linear(8, 4), update_freq)
    state = sparse.state_dict() | {"prune_cur_batch": torch.tensor(4)}
    sparse.load_state_dict(state)
    before = sparse.wts_mask.clone()
    with torch.no_grad():
        sparse.replaced_module.weight.mul_(torch.where(before, 0.01, 1.0))
    sparse(torch.randn(2, 8))
    assert torch.equal(sparse.wts_mask, before) != due
    assert int(sparse.prune_cur_batch) == 5


def test_folding_replaces_the_weight_and_writes_none() -> None:
    sparse = SparseModule(nn.Linear(8, 4))
    weight = sparse.replaced_module.weight
    before = weight.detach().clone()
    sparse.fold_mask()
    assert torch.equal(weight, before)
    assert torch.equal(sparse.replaced_module.weight, before * sparse.wts_mask)


def test_stands_in_for_the_layer() -> None:
    sparse = SparseModule(nn.Conv2d(4, 6, 3).eval())
    assert not sparse.training
    assert sparse.out_channels == 6
    assert sparse.weight is sparse.replaced_module.weight
    with pytest.raises(AttributeError):
        sparse.nothing  # noqa: B018
    copied = copy.deepcopy(sparse).half()
    assert copied.wts_mask.dtype == torch.bool
    program = torch.export.export(sparse.train(), (torch.randn(1, 4, 5, 5),))
    assert int(sparse.prune_cur_batch) == 0
    assert program.module()(torch.randn(1, 4, 5, 5)).shape == (1, 6, 3, 3)
