"""A training step with 2:4 masks against a float one, of the same network in the same process."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.harness import Row, ratio, report, threads
from workbench.engine.files.prune_config import SELECTIVE_TYPES, SelectivePrune
from workbench.engine.flows.selective import wrap_selective_layers
from workbench.zoo import architectures


def step_of(model: nn.Module, batch: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(model(batch).square().mean())
        optimizer.step()

    return step


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(threads())
    rows = []
    cases = (
        ("ResNet-18, 8×3×112×112", architectures.resnet18(), torch.randn(8, 3, 112, 112)),
        (
            "ResNet-20 on digits, batch 128",
            architectures.DigitsResNet(),
            torch.rand(128, 1, 32, 32),
        ),
    )
    for title, model, batch in cases:
        model.train()
        layers = [n for n, m in model.named_modules() if type(m).__name__ in SELECTIVE_TYPES]
        plain = step_of(model, batch)
        for update_freq in (0, 1):
            sparse = copy.deepcopy(model)
            wrap_selective_layers(sparse, {name: SelectivePrune(update_freq) for name in layers})
            value, ours, theirs = ratio(step_of(sparse, batch), plain, repeats=9)
            rows.append(
                Row(
                    f"2:4 training step ÷ float step, {title}, update_freq {update_freq}",
                    threads(),
                    value,
                    "×",
                    1.3,
                    f"{1000 * ours:.0f} ms, float {1000 * theirs:.0f} ms",
                )
            )
    report(rows)


if __name__ == "__main__":
    main()
