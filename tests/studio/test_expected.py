"""What a model wants as inputs, read from its file or module, and how a mismatch is said."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from studio_models import make_net
from torch import nn

from workbench.engine.errors import WorkbenchError, WrongValue
from workbench.studio import open_session
from workbench.studio.expected import (
    ExpectedInput,
    expected_of_file,
    expected_of_model,
    mismatch,
    model_channels,
)

PICTURE = (ExpectedInput("x", (0, 3, 224, 224), "float32"),)


def test_the_inputs_of_an_onnx_file(tmp_path: Path) -> None:
    picture = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 16, 16])
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [1, None])
    weight = helper.make_tensor_value_info("w", TensorProto.FLOAT, [1])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["y"])], "g", [picture, ids, weight], [output],
        [helper.make_tensor("w", TensorProto.FLOAT, [1], [0.0])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph), tmp_path / "net.onnx")
    found = expected_of_file(tmp_path / "net.onnx")
    assert found == (
        ExpectedInput("image", (0, 3, 16, 16), "float32"),
        ExpectedInput("ids", (1, 0), "int64"),
    )
    assert found[0].words == "image: any×3×16×16, float32"


def test_the_inputs_of_an_exported_program(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        make_net(), (torch.ones(2, 3, 8, 8),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(program, tmp_path / "net.pt2")
    assert expected_of_file(tmp_path / "net.pt2") == (ExpectedInput("x", (0, 3, 8, 8), "float32"),)


def test_the_inputs_of_a_folder_of_transformers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert expected_of_file(tmp_path)[0].words == "input_ids: any×any, int64"
    (tmp_path / "config.json").write_text(json.dumps({"image_size": 32, "num_channels": 1}))
    assert expected_of_file(tmp_path)[0].shape == (0, 1, 32, 32)


@pytest.mark.parametrize("name", ["a.onnx", "a.pt2", "gone.pt2"])
def test_a_file_that_is_no_model(tmp_path: Path, name: str) -> None:
    if name[0] == "a":
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises((WorkbenchError, OSError)):
        expected_of_file(tmp_path / name)


def test_what_a_module_gives_away() -> None:
    assert expected_of_model(make_net(), ["x"]) == (ExpectedInput("x", (0, 3, 0, 0), "float32"),)
    ids = expected_of_model(nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 2)), ["ids"])
    assert ids[0].words == "ids: int64"
    assert expected_of_model(make_net(), ["x", "mask"]) == ()
    assert expected_of_model(nn.ReLU(), ["x"]) == ()
    assert model_channels(nn.Sequential(nn.Conv2d(1, 2, 3))) == 1
    assert model_channels(nn.Linear(2, 2)) == 3


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((8, 224, 224, 3), torch.float32,
         "input `x` wants 3×224×224, the data has 224×224×3: transpose?"),
        ((8, 3, 256, 320), torch.float32,
         "input `x` wants 3×224×224, the data has 3×256×320: resize or crop to 224×224?"),
        ((8, 1, 224, 224), torch.float32,
         "input `x` wants 3×224×224, the data has 1×224×224: grey or colour?"),
        ((3, 224, 224), torch.float32,
         "input `x` wants 3×224×224, the data has 224×224: is the dimension of the samples or "
         "the channels missing?"),
        ((8, 3, 224, 224), torch.uint8, "input `x` wants float32, the data has uint8: convert?"),
        ((8, 3, 224, 224), torch.float64,
         "input `x` wants float32, the data has float64: convert?"),
        ((1, 3, 224, 224), torch.float32, ""),
    ],
)  # fmt: skip
def test_a_mismatch_in_words(shape: tuple[int, ...], dtype: torch.dtype, words: str) -> None:
    assert mismatch(PICTURE, (torch.zeros(shape, dtype=dtype),)) == words


def test_too_few_inputs_and_unknown_ones() -> None:
    x = torch.zeros(1, 3, 224, 224)
    two = (*PICTURE, ExpectedInput("mask"))
    assert mismatch(two, (x,)) == "the model wants 2 inputs (`x`, `mask`), the data has 1"
    assert mismatch((), (x, x)) == ""
    assert mismatch((ExpectedInput("x"),), (x,)) == ""


def test_opening_says_it_in_words(tmp_path: Path) -> None:
    from workbench.studio.errors import JobFailed

    pictures = [torch.zeros(4, 8, 8, 3)]
    with pytest.raises((JobFailed, WrongValue), match="wants 3×any×any, the data has 8×8×3: tra"):
        open_session(make_net(), data=pictures, project=tmp_path / "p", threads=1)
