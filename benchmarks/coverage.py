"""What pruning at 0.5 leaves of networks of every kind, and how long it takes to look at them.

Times are those of the processor.
"""

from __future__ import annotations

import time

import torch
from torch import nn

from benchmarks.harness import Row, report, settled, threads
from benchmarks.networks import NETWORKS, Known
from workbench.engine.files.prune_config import ChannelPrune, PruneConfig
from workbench.engine.flows.prune import prune_channels
from workbench.engine.graph.capture import capture
from workbench.engine.graph.channel_groups import channel_groups
from workbench.engine.graph.channel_map import channel_map

SLACK = 0.05
"""How much more than elsewhere may be left (chapter 40, acceptance 23)."""


def row(name: str, known: Known) -> list[Row]:
    torch.manual_seed(0)
    side = 224 if name == "vit_b_16" else 64
    model = settled(known.make(), torch.randn(8, 3, side, side))
    captured = capture(model, torch.randn(2, 3, side, side), dynamic=False)
    channels = channel_map(captured)
    begun = time.process_time()
    channel_groups(channel_map(captured), channels.producers)
    looking = time.process_time() - begun
    config = PruneConfig({n: ChannelPrune(0.5, False) for n in channels.producers})
    made = prune_channels(model, captured, config)
    left = parameters(made.model) / parameters(model)
    bar = known.left + SLACK if known.left else without_half_of_mlps(model)
    refused = [g.producers for g in made.report.groups if not any(g.removed.values())]
    note = f"groups in {looking:.2f} s; {len(made.report.groups) - len(refused)} groups pruned"
    if refused:
        note += f", {len(refused)} not"
    rows = [Row(f"Parameters left of {name}", threads(), 100 * left, "%", 100 * bar, note)]
    if name == "densenet121":
        rows.append(Row(f"Channel groups of {name}", threads(), looking, "s", 5.0))
    return rows


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def without_half_of_mlps(model: nn.Module) -> float:
    """The share that is left when the hidden layers of all MLPs are halved."""
    gone = 0
    for block in model.modules():
        if isinstance(getattr(block, "up", None), nn.Linear):
            gone += block.up.weight.numel() + block.up.bias.numel() + block.down.weight.numel()
    return 1 - gone / 2 / parameters(model) + 1e-9


def main() -> None:
    torch.set_num_threads(threads())
    report([found for name, known in NETWORKS.items() for found in row(name, known)])


if __name__ == "__main__":
    main()
