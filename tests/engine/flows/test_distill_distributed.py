"""Two processes distil one student (index decision 26)."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import warm
from distill_distributed import BATCH, distilled, pictures, write_config
from servers import free_port


def test_two_ranks_equal_one_process_on_the_joint_batches(tmp_path: Path) -> None:
    file = write_config(tmp_path / "c.json")
    joined = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        warm.Process(
            ["-m", "tests.support.distill_distributed", str(tmp_path)],
            cwd=Path(__file__).parents[3],
            env={**os.environ, **joined, "RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    joint = distilled(file, pictures(), BATCH, wrap=False)
    for name, value in joint.items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], value, rtol=1e-3, atol=1e-5)
