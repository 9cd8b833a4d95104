"""Channel pruning: groups, removal, sensitivity and search, and what the smaller network brings."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Row, high_water, ratio, report, seconds, settled, threads
from workbench import zoo
from workbench.engine import (
    TrainingSettings,
    auto_channel_prune_search,
    create_prune_retrain_model,
    fit,
    save_prune_retrain_model,
)
from workbench.engine.analysis.channel_sensitivity import taylor_sensitivity
from workbench.engine.files.prune_config import ChannelPrune, PruneConfig
from workbench.engine.flows.channel_surgery import apply_cuts, cuts_of
from workbench.engine.flows.prune import prune_channels
from workbench.engine.flows.prune_plan import plan_removal
from workbench.engine.graph.capture import capture
from workbench.engine.graph.channel_groups import ChannelGroups, channel_groups
from workbench.engine.graph.channel_map import channel_map
from workbench.engine.graph.copying import copy_for_training
from workbench.engine.search.channel_greedy import greedy
from workbench.engine.search.channel_plugins import TaylorLossSensitivity
from workbench.engine.search.channel_space import SearchSpace, layer_costs
from workbench.zoo import architectures
from workbench.zoo.score import top1
from workbench.zoo.training_data import TrainingDigits

PICTURE = (1, 3, 224, 224)
BATCHES = 4
HALF = "prune_config {{ filter_pruner {{ balanced_l2_norm_filter_prune {{ prune_ratio: {} }} }} }}"


def groups_of(captured: Any) -> ChannelGroups:
    return channel_groups(channel_map(captured))


def resnet50() -> list[Row]:
    torch.manual_seed(0)
    model = settled(architectures.resnet50(), torch.randn(4, *PICTURE[1:]))
    captured = capture(model, torch.randn(PICTURE), dynamic=False)
    layers = {name: ChannelPrune(0.5, False) for name in channel_map(captured).producers}
    config = PruneConfig(layers)
    whole = seconds(lambda: prune_channels(model, captured, config), 3)

    def remove() -> None:
        found = channel_groups(channel_map(captured), layers).groups
        removals = [plan_removal(captured.module, g, layers, compat=False) for g in found]
        apply_cuts(copy_for_training(model), cuts_of(removals))

    groups = groups_of(captured).groups
    generator = np.random.default_rng(0)
    values = [generator.lognormal(size=group.size) for group in groups]
    reached: list[float] = []

    def search() -> None:
        space = SearchSpace(
            groups, layer_costs(captured), ascend_optimized=False, max_prune_ratio=1.0
        )
        greedy(space, values, 2.0)
        reached.append(space.ratio)

    searching = seconds(search, 3)
    at = threads()
    return [
        Row("Channel groups of ResNet-50", at, seconds(lambda: groups_of(captured)), "s", 1.0),
        Row(
            "Prune ResNet-50 at 0.5", at, whole, "s", 2.0,
            f"with two forwards that compare it to the dense one; without {seconds(remove, 3):.2f}",
        ),
        Row("Greedy search, ResNet-50, 2x", at, searching, "s", 2.0),
        Row("… over its target", at, 100 * (reached[-1] / 2 - 1), "%", 1.0),
        latency(model),
    ]  # fmt: skip


def latency(model: nn.Module) -> Row:
    """ONNX Runtime on the network with half the MACs against the whole one."""
    picture = torch.randn(PICTURE)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / n) for n in ("p.cfg", "r.txt")]
        Path(paths[0]).write_text(HALF.format(0.3))
        pruned = create_prune_retrain_model(model, picture, *paths)
        runs = []
        for name, network in (("dense", model), ("pruned", pruned)):
            save_prune_retrain_model(network, str(Path(folder) / name), picture)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads()
            path = str(Path(folder) / f"{name}_deploy_model.onnx")
            session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
            given = {session.get_inputs()[0].name: picture.numpy()}
            runs.append(lambda session=session, given=given: session.run(None, given))
        found, ours, _ = ratio(runs[1], runs[0], 9)
        macs = [
            sum(x.macs for x in capture(m, picture, dynamic=False).layers.values())
            for m in (pruned, model)
        ]
    note = f"{macs[0] / macs[1]:.0%} of the MACs (ratio 0.3, aligned), {1e3 * ours:.0f} ms"
    return Row("Float latency of pruned ResNet-50 ÷ whole", threads(), found, "x", 0.0, note)


def batches(model: nn.Module, count: int = BATCHES) -> Iterator[tuple[tuple[Tensor], Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield (torch.randn(8, 3, 128, 128, generator=generator),), torch.randn(8, 1000)


def train(model: nn.Module, count: int, *, step: bool) -> None:
    """Forward and backward on ``count`` batches, each with a step of SGD or not."""
    optimiser = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    for inputs, label in batches(model, count):
        F.l1_loss(model(*inputs), label).backward()
        if step:
            optimiser.step()
            optimiser.zero_grad()


def mobilenet() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = settled(architectures.mobilenet_v2(), torch.randn(8, 3, 128, 128))
    return model, capture(model, torch.randn(1, 3, 128, 128), dynamic=False)


def sensitivity(model: nn.Module, captured: Any, count: int = BATCHES) -> None:
    groups = groups_of(captured).groups
    taylor_sensitivity(captured.module, groups, batches(model, count), F.l1_loss)


def sensitivities() -> list[Row]:
    model, captured = mobilenet()
    found, _, _ = ratio(
        lambda: sensitivity(model, captured), lambda: train(model, BATCHES, step=False), 3
    )
    added = {what: in_process(what) for what in ("taylor", "train")}
    note = f"{added['taylor'] / 1e6:.0f} MB of {added['train'] / 1e6:.0f} MB"
    return [
        Row("Taylor sensitivity ÷ forward-backward, MobileNetV2", threads(), found, "x", 1.3),
        Row(
            "… memory ÷ training step", threads(), added["taylor"] / added["train"], "x", 1.2, note
        ),
    ]


def in_process(what: str) -> int:
    """Peak memory that a run adds to a process of its own, whose capture left some free."""
    command = [sys.executable, "-m", "benchmarks.prune", what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def child(what: str) -> None:
    model, captured = mobilenet()
    before = psutil.Process().memory_info().rss
    if what == "taylor":
        sensitivity(model, captured)
    else:
        train(model, BATCHES, step=True)
    print(json.dumps(high_water() - before))


def digits() -> list[Row]:
    """Accuracy of digits-resnet at half the MACs: BalancedL2Norm against the Taylor search."""
    example = zoo.load("digits-resnet")
    data = example.data
    rows = [Row("Accuracy of digits-resnet", threads(), 100 * top1(example.model, data), "%")]
    scores = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / n) for n in ("p.cfg", "r.txt", "s.cfg")]
        whole = costs(example.model, data.calibration[:1])
        for name in ("L2", "Taylor"):
            if name == "L2":
                write_uniform(example.model, data.calibration[:2], paths, whole)
            else:
                Path(paths[2]).write_text(
                    "compress_ratio: 2 ascend_optimized: false test_iteration: 256"
                )
                measure = TaylorLossSensitivity()
                measure.set_loss_func(F.cross_entropy)
                auto_channel_prune_search(
                    example.model, paths[2], training_samples(256), paths[0], sensitivity=measure
                )
            pruned = create_prune_retrain_model(
                example.model, data.calibration[:2], paths[0], paths[1]
            )
            left = costs(pruned, data.calibration[:1]) / whole
            before = top1(pruned.eval(), data)
            fit(
                pruned,
                TrainingDigits("digits-resnet"),
                loss=F.cross_entropy,
                settings=TrainingSettings(epochs=1, learning_rate=2e-3),
            )
            scores[name] = 100 * top1(pruned.eval(), data)
            note = f"{left:.1%} of the bit-operations; before fine-tuning {before:.1%}"
            rows.append(
                Row(f"… half the MACs, {name}, one epoch", threads(), scores[name], "%", 0.0, note)
            )
    rows.append(
        Row("… L2 better than Taylor by", threads(), scores["L2"] - scores["Taylor"], "points")
    )
    return rows


def training_samples(count: int) -> list[Tensor]:
    pairs = list(TrainingDigits("digits-resnet", copies=1))
    return [torch.cat(part)[:count] for part in zip(*pairs, strict=True)]


def costs(model: nn.Module, picture: Tensor) -> float:
    captured = capture(model, picture, dynamic=False)
    return sum(c.bitops(c.cin, c.cout) for c in layer_costs(captured).values())


def write_uniform(model: nn.Module, pictures: Tensor, paths: list[str], whole: float) -> None:
    """The smallest ratio in steps of a hundredth that leaves half of the bit-operations."""
    captured = capture(model, pictures, dynamic=False)
    for percent in range(20, 60):
        text = HALF.format(f"{percent / 100} ascend_optimized: false")
        layers = {n: ChannelPrune(percent / 100, False) for n in channel_map(captured).producers}
        pruned = prune_channels(model, captured, PruneConfig(layers)).model
        if costs(pruned, pictures[:1]) <= whole / 2:
            Path(paths[0]).write_text(text)
            return


def main() -> None:
    if len(sys.argv) > 1:
        child(sys.argv[1])
        return
    torch.set_num_threads(threads())
    report([*resnet50(), *sensitivities(), *digits()])


if __name__ == "__main__":
    main()
