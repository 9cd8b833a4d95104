"""The table of what a choice leaves, against smaller models that were really made."""

from __future__ import annotations

import json

import channel_models
import pytest
import torch
from torch import Tensor, nn

from workbench.engine.files.prune_config import ChannelPrune, PruneConfig
from workbench.engine.flows.prune import prune_channels
from workbench.engine.graph.capture import capture
from workbench.engine.graph.channel_groups import channel_groups
from workbench.engine.graph.channel_map import channel_map
from workbench.engine.search.channel_space import SearchSpace, layer_costs
from workbench.engine.search.channel_table import ChannelTable, channel_table

IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
SMALL = IMAGE[:, :, :8, :8]
NETWORKS = {
    "coupled by an addition": (channel_models.Reference, SMALL),
    "concatenated": (channel_models.DenseNet, SMALL),
    "depthwise and gated": (channel_models.MobileNet, IMAGE),
    "grouped": (channel_models.ResNeXt, SMALL),
    "shuffled": (channel_models.ShuffleNet, IMAGE),
    "with norms of groups": (channel_models.GroupNormNet, SMALL),
}


def size(model: nn.Module, inputs: Tensor) -> tuple[int, int]:
    layers = capture(model, (inputs,), dynamic=False).layers.values()
    return sum(p.numel() for p in model.parameters()), sum(layer.macs for layer in layers)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_table_says_what_is_left(name: str) -> None:
    make, inputs = NETWORKS[name]
    torch.manual_seed(0)
    model = channel_models.unsettle(make()).eval()
    captured = capture(model, (inputs,), dynamic=False)
    producers = channel_map(captured).producers
    groups = channel_groups(channel_map(captured), producers).groups
    table = channel_table(captured, groups)
    whole = table.remains([0] * len(groups))
    assert (whole.parameters, whole.macs) == size(model, inputs)
    assert whole.ratio == 1.0 and whole.bytes == 4 * whole.parameters
    assert whole.bitops == 1024 * whole.macs

    ratios = {path: 0.25 + 0.05 * (i % 6) for i, path in enumerate(producers)}
    made = prune_channels(
        model, captured, PruneConfig({n: ChannelPrune(r, False) for n, r in ratios.items()})
    )
    counts = table.counts(ratios)
    left = table.remains(counts)
    assert (left.parameters, left.macs) == size(made.model.eval(), inputs)
    removed = {n: len(gone) for g in made.report.groups for n, gone in g.removed.items() if gone}
    if name != "shuffled":  # there a layer lies in several groups
        assert table.removed(counts) == removed
    assert sum(table.removed(counts).values()) > 0
    space = SearchSpace(groups, layer_costs(captured), ascend_optimized=False, max_prune_ratio=1.0)
    for index, count in enumerate(counts):
        space.remove(index, count)
    assert left.ratio == pytest.approx(space.ratio)

    again = ChannelTable.from_json(json.loads(json.dumps(table.to_json())))
    assert again.remains(counts) == left
    assert again.counts(again.ratios(counts)) == counts


def test_a_group_needs_all_of_its_producers() -> None:
    model = channel_models.unsettle(channel_models.Reference()).eval()
    captured = capture(model, (SMALL,), dynamic=False)
    found = channel_groups(channel_map(captured), channel_map(captured).producers)
    table = channel_table(captured, found.groups)
    alone = table.remains(table.counts({"c0": 0.5}))  # its channels are added to those of c1
    assert alone.ratio == 1.0
    both = table.counts({"c0": 0.5, "c1": 0.25})
    assert table.removed(both) == {"c0": 2, "c1": 2}  # the smaller ratio, of 8 channels
    assert table.counts({"c0": 0.5, "c1": 0.5}, aligned=True) == (0,) * len(found.groups)
