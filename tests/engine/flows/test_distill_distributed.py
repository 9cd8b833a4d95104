"""Two processes distil one student (index decision 26)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from distill_distributed import BATCH, distilled, pictures, write_config


def test_two_ranks_equal_one_process_on_the_joint_batches(tmp_path: Path) -> None:
    file = write_config(tmp_path / "c.json")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "tests.support.distill_distributed", str(tmp_path)),
        ],
        cwd=Path(__file__).parents[3],
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    joint = distilled(file, pictures(), BATCH, wrap=False)
    for name, value in joint.items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], value, rtol=1e-3, atol=1e-5)
