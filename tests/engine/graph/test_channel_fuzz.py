"""Random networks, pruned at random: right or refused, never wrong (chapter 40 section 9.4)."""

from __future__ import annotations

import channel_models
import pytest
import torch
from channel_fuzz import RandomNet
from torch import nn

from workbench.engine.algorithms.channel_choice import lowest
from workbench.engine.flows.channel_checks import RemovalCheck, without
from workbench.engine.flows.channel_surgery import Removal
from workbench.engine.graph.capture import capture
from workbench.engine.graph.channel_groups import channel_groups
from workbench.engine.graph.channel_map import channel_map


@pytest.mark.parametrize("seed", range(24))
def test_random_network(seed: int) -> None:
    torch.manual_seed(seed)
    model = channel_models.unsettle(RandomNet(seed), seed)
    found = capture(model, torch.randn(2, 3, 6, 6), dynamic=False)
    removals = []
    for group in channel_groups(channel_map(found)).groups:
        steps = max(1, round(0.4 * group.steps))
        scores = torch.rand(group.size).numpy().astype("float64")
        removals.append(Removal(group, lowest(scores, group.cells, steps * group.stride)))
    accepted = RemovalCheck(found).accept(removals)
    # Numbers in its code that no attribute holds may refuse a group, but hardly ever do.
    assert len(accepted.refused) <= 1
    pruned = without(found.module, accepted.removals, accepted.sizes)
    modules = dict(found.module.named_modules())
    for removal in accepted.removals:
        for member in removal.group.members:
            if member.role == "consumer":
                axis = -1 if isinstance(modules[member.module], nn.Linear) else 1
                gone = torch.tensor(member.channels(removal.units), dtype=torch.long)
                modules[member.module].register_forward_pre_hook(
                    lambda _, given, axis=axis, gone=gone: (given[0].index_fill(axis, gone, 0.0),)
                )
    with torch.no_grad():
        made, expected = pruned(*found.args), found.module(*found.args)
    assert float((made - expected).abs().max() / expected.abs().max()) < 1e-4
    for layer in pruned.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.shape[0] == layer.out_channels >= 1
            assert layer.weight.shape[1] == layer.in_channels // layer.groups
