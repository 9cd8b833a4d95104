"""What each of two processes under torchrun does: ``python -m torch.distributed.run ... FOLDER``.

The first argument is a folder with the configuration ``given.json`` and the checkpoint that the
test has put there. Rank 0 writes what it found to ``found.pth``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from qat_models import Files, batch, make_config, small_net
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from workbench.engine import (
    create_quant_retrain_model,
    restore_quant_retrain_model,
    save_quant_retrain_model,
)

STEPS = 3


class Plain(nn.Module):
    """No batch norm: the gradient of a joint batch is the mean of the gradients of its parts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first = nn.Conv2d(2, 4, 3)
        self.second = nn.Conv2d(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x))).mean((2, 3))
        return out


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    (model(x) - 1).pow(2).mean().backward()
    optimizer.step()


def train_plain(model: nn.Module, parts: range) -> None:
    """Each step on the batches of these numbers, joined."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.train()
    for number in range(STEPS):
        step(model, optimizer, torch.cat([batch(10 * number + part) for part in parts]))


def equal_on_all_ranks(model: nn.Module) -> bool:
    clips = torch.stack([v for k, v in model.state_dict().items() if "clip_m" in k])
    everyone = [torch.empty_like(clips) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, clips)
    return all(torch.equal(clips, other) for other in everyone)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    files = Files(folder)
    found: dict[str, Any] = {}

    # Given clip bounds, no batch norm; the bare model is instrumented, then wrapped.
    created = create_quant_retrain_model(
        str(folder / "given.json"), Plain(), str(folder / "plain.txt"), batch(0)
    )
    train_plain(DistributedDataParallel(created), range(rank, rank + 1))
    found["plain"] = created.state_dict()

    # Bounds that are searched, with batch norm; a wrapped model is instrumented.
    wrapped = DistributedDataParallel(small_net())
    if rank == 0:
        make_config(files, small_net(), batch(0))
    dist.barrier()
    model = create_quant_retrain_model(files.config, wrapped, f"{files.record}.{rank}", batch(0))
    assert isinstance(model, DistributedDataParallel)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    equal = []
    for number in range(STEPS):
        x = batch(20 + 10 * number + rank) * (1 + rank)
        if number == 0:
            model(x)
            found["searched"] = model.module.stem.quant_module.acts_clip_max.item()
        step(model, optimizer, x)
        equal.append(equal_on_all_ranks(model))
    found["equal"] = equal
    model.eval()
    with torch.no_grad():
        model(batch(9))
    equal.append(equal_on_all_ranks(model))
    dist.barrier()
    found["records"] = sorted(p.name for p in folder.glob("qat.record.txt.?"))
    save_quant_retrain_model(
        files.config, model, f"{files.record}.{rank}", str(folder / f"of{rank}"), batch(0)
    )

    # A process that never created the model can restore and save it.
    restored = restore_quant_retrain_model(
        str(folder / "given.json"),
        Plain(),
        str(folder / "restored.txt"),
        batch(0),
        files.checkpoint,
    )
    restored.eval()(batch(9))
    save_quant_retrain_model(
        str(folder / "given.json"),
        restored,
        str(folder / "restored.txt"),
        str(folder / "restored"),
        batch(0),
    )
    if rank == 0:
        torch.save(found, folder / "found.pth")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
