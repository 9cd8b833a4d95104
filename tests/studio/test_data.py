"""Batches of loaders and ``.npz`` files, and the built-in metrics."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from workbench.engine.errors import MissingFile, WrongType, WrongValue
from workbench.studio.batches import DataSet, cut, read_npz, read_stored, to_batch, write_stored
from workbench.studio.code import load_object
from workbench.studio.errors import CodeNotAllowed
from workbench.studio.metrics import Batch, CosineToFloat, psnr, resolve, top1, top5
from workbench.studio.project import DataSpec


class One(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Two(nn.Module):
    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return ids


X, Y = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("model", "item", "inputs", "target"),
    [
        (One(), X, 1, False),
        (One(), [X, Y], 1, True),
        (One(), (X, X), 1, True),
        (One(), ((X,), Y), 1, True),
        (Two(), (X, X), 2, False),
        (Two(), (X, X, Y), 2, True),
        (Two(), {"ids": X, "mask": X, "labels": Y}, 2, True),
        (Two(), {"ids": X}, 1, False),
        (One(), X.numpy(), 1, False),
    ],
)
def test_what_is_input_and_what_is_label(
    model: nn.Module, item: Any, inputs: int, target: bool
) -> None:
    batch = to_batch(item, model)
    assert len(batch.inputs) == inputs
    assert (batch.target is not None) == target


@pytest.mark.parametrize("item", ["text", [None], {"other": X}, []])
def test_items_that_are_no_batch(item: Any) -> None:
    with pytest.raises((WrongType, WrongValue)):
        to_batch(item, One())


class ByName(nn.Module):
    def forward(self, left: Tensor, *, right: Tensor) -> Tensor:
        return left + right


def test_an_input_that_has_to_be_named_is_refused() -> None:
    with pytest.raises(WrongValue, match="right by keyword only"):
        to_batch({"left": X, "right": X}, ByName())


def test_calibration_and_evaluation_loaders() -> None:
    data = cut({"calibration": [X, X, X], "evaluation": [(X, Y)]}, One(), DataSpec())
    assert len(data.calibration) == 2
    assert len(data.evaluation) == 1
    assert data.evaluation[0].target is not None


def test_stored_batches_come_back(tmp_path: Path) -> None:
    data = DataSet([(X, X)], [Batch((X, X), Y), Batch((X,), None)])
    write_stored(tmp_path / "data.npz", data)
    again = read_stored(tmp_path / "data.npz")
    assert torch.equal(again.calibration[0][1], X)
    assert torch.equal(again.evaluation[0].target, Y)  # type: ignore[arg-type]
    assert again.evaluation[1].target is None
    assert len(again.evaluation[1].inputs) == 1


def test_stored_bfloat16_batches_come_back_as_float32(tmp_path: Path) -> None:
    x = torch.tensor([[0.1, -3.0]], dtype=torch.bfloat16)
    write_stored(tmp_path / "data.npz", DataSet([(x,)], [Batch((x,), x)], "numbers"))
    again = read_stored(tmp_path / "data.npz")
    assert torch.equal(again.calibration[0][0], x.float())


def test_npz_by_input_name(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    np.savez(path, x=x, labels=np.arange(10))
    data = read_npz(path, ["x"], DataSpec(batch_size=4, calibration_batches=1))
    assert [len(b.inputs[0]) for b in data.evaluation] == [4, 4, 2]
    assert len(data.calibration) == 1
    assert data.evaluation[2].target.tolist() == [8, 9]  # type: ignore[union-attr]
    assert not data.notices
    (said,) = read_npz(path, ["image"], DataSpec()).notices
    assert said.startswith("data.npz: the array x is taken") and "image and labels" in said
    np.savez(path, a=x, b=x)
    with pytest.raises(WrongValue, match="the model wants image"):
        read_npz(path, ["image"], DataSpec())
    with pytest.raises(WrongValue, match="has a, b, and no mask, which .* before b"):
        read_npz(path, ["a", "mask", "b"], DataSpec())
    several = read_npz(path, ["a", "b", "mask"], DataSpec())
    assert len(several.calibration[0]) == 2 and not several.notices
    np.savez(path, x=x, labels=np.arange(9))
    with pytest.raises(WrongValue, match="lengths"):
        read_npz(path, ["x"], DataSpec())


def test_hostile_npz_files(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with pytest.raises(MissingFile):
        read_npz(path, ["x"], DataSpec())
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(WrongValue, match="not a readable"):
        read_npz(path, ["x"], DataSpec())
    np.savez(path, x=np.array([object()], dtype=object), allow_pickle=True)  # type: ignore[arg-type]
    with pytest.raises(WrongValue):
        read_npz(path, ["x"], DataSpec())
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**3)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + b"\0" * 64)
    with pytest.raises(WrongValue, match="shorter than it says"):
        read_npz(path, ["x"], DataSpec())


def test_metrics_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    batches = [((logits,), torch.tensor([1, 1, 1]))]
    assert top1(lambda x: x, batches) == pytest.approx(2 / 3)
    a, b = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.6, 0.4]])
    assert psnr(lambda x: x, [((a,), b)]) == pytest.approx(10 * math.log10(1 / 0.01))
    score = CosineToFloat(lambda x: x)
    assert score(lambda x: -x, [((logits,), None)]) == pytest.approx(-1.0)
    halfway = CosineToFloat(lambda _: torch.tensor([[1.0, 0.0]]))
    assert halfway(lambda _: torch.tensor([[1.0, 1.0]]), [((a,), None)]) == pytest.approx(
        math.sqrt(0.5)
    )


def test_top5_counts_labels_among_the_five_largest() -> None:
    outputs = torch.tensor(
        [[9.0, 8, 7, 6, 5, 4, 3], [1, 2, 3, 4, 5, 6, 7.0], [0, 0, 1, 2, 3, 4, 5]]
    )
    labels = torch.tensor([4, 2, 0])  # fifth, fifth, last
    assert top5(lambda x: x, [((outputs,), labels)]) == pytest.approx(2 / 3)
    few = torch.tensor([[1.0, 2, 3]])
    assert top5(lambda x: x, [((few,), torch.tensor([0]))]) == 1.0


def test_metric_names() -> None:
    labelled, plain = [Batch((X,), Y)], [Batch((X,))]
    assert resolve("", reference=One(), batches=labelled).name == "top1"
    assert resolve("", reference=One(), batches=plain).name == "cosine"
    with pytest.raises(WrongValue, match="no metric 'top2'"):
        resolve("top2", reference=One(), batches=plain)


def test_code_is_loaded_only_where_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORKBENCH_ALLOW_CODE", raising=False)
    with pytest.raises(CodeNotAllowed, match="loading code is off"):
        load_object("os.path:join", what="metric")
    monkeypatch.setenv("WORKBENCH_ALLOW_CODE", "1")
    assert load_object("os.path:join", what="metric") is __import__("os").path.join
    with pytest.raises(WrongValue, match="cannot be loaded"):
        load_object("os.path:nothing_there", what="metric")
    with pytest.raises(WrongValue, match="not of the form"):
        load_object("os; import sys:path", what="metric")
