"""ONNX files become module trees: ONNX's own test cases, exported networks, and hostile files."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.engine.errors import MissingFile, WorkbenchError, WrongValue
from workbench.engine.export.float_onnx import to_onnx
from workbench.engine.export.onnx_file import save_onnx
from workbench.engine.graph.capture import capture
from workbench.engine.graph.folding import FoldPlan
from workbench.engine.graph.onnx_builder import HANDLERS
from workbench.engine.graph.onnx_model import load_onnx_model
from workbench.engine.graph.onnx_source import external_locations, read_onnx
from workbench.studio.expected import expected_of_file
from workbench.zoo import load

# torch does not compute with these types, or says so in words of its own.
NO_KERNEL = ("uint16", "uint32", "uint64", "bfloat16", "empty_set")
UNTESTED = {"Cast", "ConstantOfShape", "LayerNormalization", "Range"}
"""Their cases take everything from inputs, or ask for outputs that are not read."""


def node_cases() -> list[Any]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            case
            for case in collect_testcases(None)
            if case.model is not None
            and len(case.model.graph.node) == 1
            and case.model.graph.node[0].op_type in HANDLERS
            and not any(word in case.name for word in (*NO_KERNEL, "cast_", "training"))
        ]


def test_every_operator_computes_what_onnx_says(tmp_path: Path) -> None:
    """All but the first input become constants, as they are in a network."""
    passed: Counter[str] = Counter()
    for case in node_cases():
        graph = case.model.graph
        given, wanted = case.data_sets[0]
        arrays = [np.array(each) for each in given]
        if any(array.dtype == object for array in arrays):
            continue
        for info, array in list(zip(graph.input, arrays, strict=False))[1:]:
            graph.initializer.append(numpy_helper.from_array(array, info.name))
        del graph.input[1:]
        case.model.ir_version = max(case.model.ir_version, 4)
        imports = case.model.opset_import[0]
        imports.version = max(imports.version, 11)  # Not, And, ...: the same since opset 1
        onnx.save(case.model, tmp_path / "case.onnx")
        try:
            model = load_onnx_model(tmp_path / "case.onnx")
        except WrongValue:
            continue  # refused in words; what must not be refused is counted below
        with torch.no_grad():
            found = model(*(torch.from_numpy(array) for array in arrays[:1]))
        for got, want in zip(found if isinstance(found, tuple) else (found,), wanted, strict=False):
            want = np.asarray(want)
            assert got.shape == want.shape, case.name
            tolerance = 1e-2 if want.dtype == np.float16 else 5e-4
            np.testing.assert_allclose(
                got.numpy(), want, rtol=tolerance, atol=1e-5, err_msg=case.name
            )
        passed[graph.node[0].op_type] += 1
    assert set(HANDLERS) - set(passed) <= UNTESTED
    assert passed["Conv"] >= 6 and passed["Resize"] >= 7 and sum(passed.values()) > 400


class Mixed(nn.Module):
    """Shape arithmetic, several inputs and outputs, layers of most kinds, a reused one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU6())
        self.twice = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2)
        self.pool = nn.AvgPool2d(3, 2, padding=1)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 8)
        self.line = nn.Conv1d(4, 5, 3, dilation=2)

    def forward(self, x: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        y = self.up(self.twice(torch.relu(self.twice(self.stem(x)))))
        y = F.interpolate(self.pool(y), scale_factor=2.0, mode="bilinear", align_corners=False)
        b, c, h, w = y.shape
        y = self.norm(y.view(b, c, h * w).transpose(1, 2))
        q, k = self.head(y).chunk(2, dim=-1)
        attention = torch.softmax(q @ k.transpose(1, 2) * gain, dim=-1) @ k
        return self.line(attention.transpose(1, 2)), F.gelu(y.mean(1)).reshape(b, -1)


def exported(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, **options: Any) -> Path:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    names = [f"in.{i}" for i in range(len(inputs))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(), inputs, str(path), input_names=names, verbose=False, **options
        )
    return path


def runtime(path: Path, inputs: tuple[Tensor, ...]) -> list[Any]:
    session = onnxruntime.InferenceSession(str(path))
    names = [given.name for given in session.get_inputs()]
    return list(session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True))))


@pytest.mark.parametrize("dynamo", [False, True])
def test_what_torchs_exporters_write(tmp_path: Path, dynamo: bool) -> None:
    torch.manual_seed(0)
    model = Mixed()
    inputs = (torch.randn(2, 2, 9, 9), torch.tensor(0.7))
    batch: dict[str, Any] = (
        {"dynamic_shapes": ({0: torch.export.Dim("n")}, None)}
        if dynamo
        else {"dynamic_axes": {"in.0": {0: "n"}}, "opset_version": 17}
    )
    path = exported(model, inputs, tmp_path / "mixed.onnx", dynamo=dynamo, **batch)
    built = load_onnx_model(path)
    for each in (inputs, (torch.randn(5, 2, 9, 9), inputs[1])):
        with torch.no_grad():
            found = built(*each)
        for got, want in zip(found, runtime(path, each), strict=True):
            np.testing.assert_allclose(got.numpy(), want, atol=2e-5)
    layers = capture(built, inputs).layers
    assert {"twice", "up", "line"} <= set(layers), list(layers)
    assert layers["up"].eligible and layers["line"].eligible
    assert sum(layer.type == "Linear" for layer in layers.values()) == 1
    assert any(layer.type == "AvgPool2d" and layer.eligible for layer in layers.values())


@pytest.mark.parametrize("name", ["digits-mobilenet-hard", "digits-vit"])
def test_our_own_float_file_gives_the_layers_it_came_from(tmp_path: Path, name: str) -> None:
    example = load(name)
    x = example.data.calibration[:2]
    captured = capture(example.model, (x,))
    save_onnx(to_onnx(captured, FoldPlan((), {})), tmp_path / "net.onnx", suffix=".external")
    built = load_onnx_model(tmp_path / "net.onnx")
    with torch.no_grad():
        assert torch.allclose(built(x), example.model(x), atol=1e-4)
    known = {n: (i.type, i.weight_shape, i.eligible) for n, i in captured.layers.items()}
    found = capture(built, (x,)).layers
    assert {n: (i.type, i.weight_shape, i.eligible) for n, i in found.items()} == known


# -- files that are not as they must be -----------------------------------------------------------


def small(*nodes: onnx.NodeProto, opset: int = 18) -> onnx.ModelProto:
    shape = ["n", 4]
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("mine", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def test_unknown_operators_are_listed_with_their_counts(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Special", ["x"], ["a"], domain="mine"),
        helper.make_node("Special", ["a"], ["b"], domain="mine"),
        helper.make_node("Det", ["b"], ["y"]),
    ]
    onnx.save(small(*nodes), tmp_path / "m.onnx")
    with pytest.raises(WrongValue, match=r"Det \(1×\), mine\.Special \(2×\)"):
        load_onnx_model(tmp_path / "m.onnx")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "link.bin"])
def test_external_data_stays_in_the_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    model = small(helper.make_node("MatMul", ["x", "w"], ["y"]))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(WrongValue, match="outside the folder"):
        load_onnx_model(folder / "m.onnx")


@pytest.mark.parametrize("location", ["a\0b", "a" * 2000, "a" * 300, "m.onnx", "", ".", "gone.bin"])
def test_external_data_that_cannot_be_read(tmp_path: Path, location: str) -> None:
    model = small(helper.make_node("MatMul", ["x", "w"], ["y"]))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(WrongValue, match="is not valid|has no possible file name"):
        load_onnx_model(tmp_path / "m.onnx")


def test_any_damage_is_an_error_of_ours(tmp_path: Path) -> None:
    good = small(helper.make_node("MatMul", ["x", "w"], ["y"])).SerializeToString()
    random = np.random.default_rng(0)
    path = tmp_path / "m.onnx"
    for _ in range(300):
        bad = np.frombuffer(good, np.uint8).copy()
        places = random.integers(0, len(bad), random.integers(1, 4))
        bad[places] = random.integers(0, 256, len(places))
        path.write_bytes(bad.tobytes())
        for read in (external_locations, expected_of_file, read_onnx):
            with suppress(WorkbenchError):
                read(path)


def test_names_become_no_code(tmp_path: Path) -> None:
    """The graph becomes Python source: a name in the file must not."""
    hostile = "x');import os;os.abort();(\""
    model = small(helper.make_node("MatMul", ["x", "w"], ["y"], name=hostile))
    model.graph.input[0].name = hostile
    model.graph.node[0].input[0] = hostile
    onnx.save(model, tmp_path / "m.onnx")
    x = torch.randn(3, 4)
    assert torch.equal(load_onnx_model(tmp_path / "m.onnx")(x), x)


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(MissingFile):
        load_onnx_model(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("hello, this is no model at all")
    with pytest.raises(WrongValue, match="not an ONNX file|not valid"):
        load_onnx_model(tmp_path / "text.onnx")
    onnx.save(small(helper.make_node("MatMul", ["x", "w"], ["y"]), opset=9), tmp_path / "old.onnx")
    with pytest.raises(WrongValue, match="opset is 9; 11 and later"):
        load_onnx_model(tmp_path / "old.onnx")
    onnx.save(small(helper.make_node("MatMul", ["x", "gone"], ["y"])), tmp_path / "bad.onnx")
    with pytest.raises(WrongValue, match="not valid"):
        load_onnx_model(tmp_path / "bad.onnx")


def test_control_flow_is_refused(tmp_path: Path) -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))

    path = exported(Branch(), (torch.ones(2),), tmp_path / "branch.onnx", dynamo=True)
    with pytest.raises(WrongValue, match=r"If \(1×\)"):
        load_onnx_model(path)
