"""Two processes under torchrun train one model (chapter 30 section 5.8, index decision 26)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from qat_distributed import Plain, train_plain
from qat_models import Files, batch, make_config, make_model, small_net

from workbench.engine import create_quant_retrain_model, save_quant_retrain_model

CLIPS = {"retrain_data_config": {"clip_max": 2.0, "clip_min": -2.0}}
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder after the run, and what rank 0 found."""
    folder = tmp_path_factory.mktemp("ranks")
    files = Files(folder)
    make_config(files, Plain(), batch(0), layers={"first": CLIPS, "second": CLIPS})
    Path(files.config).rename(folder / "given.json")
    torch.save(single(folder).state_dict(), files.checkpoint)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", str(ROOT / "tests/support/qat_distributed.py"), str(folder)),
        ],
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, torch.load(folder / "found.pth", weights_only=True)


def single(folder: Path) -> torch.nn.Module:
    """One process on the joint batches."""
    model = create_quant_retrain_model(
        str(folder / "given.json"), Plain(), str(folder / "single.txt"), batch(0)
    )
    train_plain(model, range(2))
    return model


def test_two_ranks_equal_one_process_on_the_joint_batch(run: tuple[Path, dict[str, Any]]) -> None:
    folder, found = run
    expected = single(folder).state_dict()
    assert list(found["plain"]) == list(expected)
    for key, value in expected.items():
        torch.testing.assert_close(found["plain"][key], value, rtol=1e-5, atol=1e-6)


def test_clip_bounds_are_equal_after_every_step(run: tuple[Path, dict[str, Any]]) -> None:
    assert run[1]["equal"] == [True] * 4


def test_searched_bounds_are_the_mean_over_the_ranks(
    run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    alone = []
    for rank in range(2):
        files = Files(tmp_path)
        model = make_model(files, small_net(), batch(0))
        model(batch(20 + rank) * (1 + rank))
        alone.append(model.stem.quant_module.acts_clip_max.item())
    assert alone[0] != pytest.approx(alone[1], rel=0.1)
    assert run[1]["searched"] == pytest.approx(sum(alone) / 2, rel=1e-6)


def test_rank_0_writes_the_files(run: tuple[Path, dict[str, Any]]) -> None:
    folder, found = run
    assert found["records"] == ["qat.record.txt.0"]
    assert (folder / "of0_deploy_model.onnx").exists()
    assert not list(folder.glob("of1*"))


def test_a_new_process_saves_what_it_restored(
    run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = run
    model = single(folder)
    model.eval()(batch(9))
    record = str(folder / "single.txt")
    save_quant_retrain_model(
        str(folder / "given.json"), model, record, str(tmp_path / "single"), batch(0)
    )
    ours = (tmp_path / "single_deploy_model.onnx").read_bytes()
    assert (folder / "restored_deploy_model.onnx").read_bytes() == ours
