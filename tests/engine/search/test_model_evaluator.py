"""``ModelEvaluator`` on files written here, against the rules of chapter 20 section 2.1."""

import numpy as np
import pytest
import torch
from torch import nn

from workbench.engine.search.model_evaluator import ModelEvaluator


class Recording(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.calls = []

    def forward(self, x, index):
        self.calls.append((x, index))
        return x * self.scale + index.float().sum()


@pytest.fixture
def folders(tmp_path):
    for number, name in enumerate(["c.bin", "a.bin", "b.bin"]):
        for folder, dtype in (("left", "<f4"), ("right", "<i8")):
            (tmp_path / folder).mkdir(exist_ok=True)
            shape = (2, 3) if folder == "left" else (2,)
            np.full(shape, number, dtype).tofile(tmp_path / folder / name)
    return f"{tmp_path}/left/;{tmp_path}/right/"


def make(folders, shape="model:x:2,3;index:2", types="float32;int64", **options):
    return ModelEvaluator(folders, shape, types, **options)


def test_two_inputs_in_name_order(folders):
    model = Recording()
    assert make(folders).calibration(model) is None
    assert [float(x[0, 0]) for x, _ in model.calls] == [1.0, 2.0, 0.0]
    assert [int(i[0]) for _, i in model.calls] == [1, 2, 0]
    assert {tuple(x.shape) for x, _ in model.calls} == {(2, 3)}
    assert {i.dtype for _, i in model.calls} == {torch.int64}
    make(folders).calibration(model, 2)
    assert len(model.calls) == 5
    outputs = make(folders).evaluate(model, 3)
    assert [float(y[0, 0]) for y in outputs] == [3.0, 6.0, 0.0]


@pytest.mark.parametrize("dtype", ["float64", "float16", "int8", "uint16", "uint64", "bool"])
def test_data_types(tmp_path, dtype):
    values = np.array([0, 1, 1, 0], dtype)
    values.tofile(tmp_path / "0.bin")
    seen = []
    evaluator = ModelEvaluator(str(tmp_path), "x:2,2", dtype)

    class Keep(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x

    evaluator.calibration(Keep())
    assert np.array_equal(seen[0].numpy(), values.reshape(2, 2)) and seen[0].numpy().dtype == dtype


def test_four_of_three_files(folders):
    with pytest.raises(RuntimeError, match=r"3 files, 4 are wanted"):
        make(folders).evaluate(Recording(), 4)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"types": "float32;complex64"}, TypeError),
        ({"types": "float32"}, ValueError),
        ({"types": 3}, TypeError),
        ({"shape": "x:2,3"}, ValueError),
        ({"shape": "2,3;index:2"}, ValueError),
        ({"shape": ":2,3;index:2"}, ValueError),
        ({"shape": "x:two;index:2"}, ValueError),
    ],
)
def test_wrong_arguments(folders, change, error):
    with pytest.raises(error):
        make(folders, **change)


@pytest.mark.parametrize(
    ("count", "error"), [(0, ValueError), (-1, ValueError), ("2", TypeError), (True, TypeError)]
)
def test_wrong_counts(folders, count, error):
    with pytest.raises(error):
        make(folders).calibration(Recording(), count)


def test_wrong_files(folders, tmp_path):
    with pytest.raises(FileNotFoundError):
        make(f"{tmp_path}/none;{tmp_path}/right").evaluate(Recording())
    with pytest.raises(ValueError, match="holds 6 elements"):
        make(folders, shape="x:2,4;index:2").evaluate(Recording())


def test_the_default_judgement_is_the_cosine(folders):
    evaluator = make(folders, target_similarity=0.9)
    a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    assert evaluator.metric_eval([a], [a]) == (True, pytest.approx(0.0))
    satisfied, loss = evaluator.metric_eval([a, a], [a, b])
    assert satisfied and loss == pytest.approx((1 - 24 / 25) / 2)
    assert not evaluator.metric_eval([a], [-a])[0]


def test_another_file_is_another_identity(folders, tmp_path):
    before = make(folders).identity
    assert before == make(folders).identity
    np.zeros((2, 3), "<f4").tofile(tmp_path / "left" / "d.bin")
    assert make(folders).identity != before
