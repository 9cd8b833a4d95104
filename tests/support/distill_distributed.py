"""One rank of a distillation: ``python -m tests.support.distill_distributed FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from workbench.engine import create_distill_config, create_distill_model, distill

CLIPS = "distill_data_quant_config { ulq_quantize { clip_max_min { clip_max: 3 clip_min: -3 } } }"
BATCH = 8


def teacher() -> nn.Module:
    """Without batch norm, so that ranks and one process see the same statistics: none."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()


def pictures() -> Tensor:
    return torch.randn(4 * BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def write_config(file: Path) -> str:
    file.with_suffix(".cfg").write_text(CLIPS)
    create_distill_config(str(file), teacher(), pictures()[:2], str(file.with_suffix(".cfg")))
    return str(file)


def distilled(file: str, x: Tensor, batch_size: int, *, wrap: bool) -> dict[str, Tensor]:
    model = teacher()
    given = DistributedDataParallel(model) if wrap else model
    student = create_distill_model(file, given, x[:2])
    data = DataLoader(TensorDataset(x), batch_size=batch_size)
    return distill(given, student, file, data, epochs=2, keep_best=False).state_dict()


def main() -> None:
    folder = Path(sys.argv[1])
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    # Each rank has its half of every batch of the joint run.
    own = pictures().reshape(-1, 2, BATCH // 2, 3, 8, 8)[:, rank].reshape(-1, 3, 8, 8)
    state = distilled(str(folder / "c.json"), own, BATCH // 2, wrap=True)
    torch.save(state, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
