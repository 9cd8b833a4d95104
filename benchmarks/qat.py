"""Training with quantisation in the loop against plain float training of the same network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Row, high_water, ratio, report, settled, threads
from workbench.engine import (
    Conv2dQAT,
    LinearQAT,
    create_quant_retrain_config,
    create_quant_retrain_model,
)
from workbench.zoo.architectures import resnet18

SHAPE = (8, 3, 224, 224)
STEPS_IN_CHILD = 3


def single_operators(model: nn.Module, batch: Tensor) -> nn.Module:
    """Every Conv2d and Linear of ``model`` replaced by its operator, in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv2d:
                setattr(parent, name, Conv2dQAT.from_float(child))
            elif type(child) is nn.Linear:
                setattr(parent, name, LinearQAT.from_float(child))
    with torch.no_grad():
        model(batch)  # finds the clip bounds
    return model


def graph(model: nn.Module, batch: Tensor) -> nn.Module:
    """The network that ``create_quant_retrain_model`` makes, all its layers enabled."""
    folder = tempfile.TemporaryDirectory()
    config, record = f"{folder.name}/qat.json", f"{folder.name}/record.txt"
    create_quant_retrain_config(config, model, batch[:1])
    made = create_quant_retrain_model(config, model, record, batch[:1])
    made.__dict__["folder"] = folder  # evaluation writes the record as long as the model lives
    with torch.no_grad():
        made.train()(batch)  # finds the clip bounds
    return made


FORMS: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "single operators": single_operators,
    "graph": graph,
}
"""How a float network becomes one with quantisation in the loop."""


def network(form: str) -> tuple[nn.Module, Tensor]:
    """ResNet-18 in a form (empty: float) and a batch; its clip bounds are found."""
    torch.manual_seed(0)
    batch = torch.randn(SHAPE)
    model = settled(resnet18(), batch)
    return (FORMS[form](model, batch) if form else model), batch


def stepper(model: nn.Module, batch: Tensor) -> Callable[[], None]:
    """One training step: forward, backward, SGD with momentum."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    target = torch.zeros(batch.shape[0], dtype=torch.int64)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(batch), target).backward()
        optimizer.step()

    return step


def forward(model: nn.Module, batch: Tensor) -> Callable[[], None]:
    """One evaluation forward."""
    model.eval()

    def run() -> None:
        with torch.no_grad():
            model(batch)

    return run


def child(form: str) -> None:
    """Peak memory of training steps, above that of the process with everything imported."""
    torch.set_num_threads(threads())
    # Lets the libraries load what they load once.
    nn.Conv2d(3, 4, 1)(torch.randn(1, 3, 8, 8)).sum().backward()
    before = psutil.Process().memory_info().rss
    step = stepper(*network(form))
    for _ in range(STEPS_IN_CHILD):
        step()
    print(json.dumps(high_water() - before))


def peak_memory(form: str) -> int:
    command = [sys.executable, "-m", "benchmarks.qat", form or "float"]
    # What is freed goes back at once: the figure is what is needed, not what the heap hoards.
    environment = dict(os.environ, MALLOC_TRIM_THRESHOLD_="0")
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment
    ).stdout
    return int(json.loads(done.strip().splitlines()[-1]))


def main() -> None:
    rows = []
    plain, batch = network("")
    plain_memory = peak_memory("")
    for form in FORMS:
        quantised, _ = network(form)
        for what, prepare, target in (
            ("QAT step ÷ float step", stepper, 1.3),
            ("QAT evaluation forward ÷ float", forward, 1.5),
        ):
            value, ours, theirs = ratio(prepare(quantised, batch), prepare(plain, batch), 7)
            note = f"{ours:.2f} s / {theirs:.2f} s"
            rows.append(Row(f"{what}, ResNet-18, {form}", threads(), value, "×", target, note))
        memory = peak_memory(form)
        rows.append(
            Row(
                f"peak memory of a QAT step ÷ float, ResNet-18, {form}",
                threads(),
                memory / plain_memory,
                "×",
                1.5,
                f"{memory / 2**20:.0f} MB / {plain_memory / 2**20:.0f} MB",
            )
        )
    report(rows)


if __name__ == "__main__":
    torch.set_num_threads(threads())
    if len(sys.argv) > 1:
        child("" if sys.argv[1] == "float" else sys.argv[1])
    else:
        main()
