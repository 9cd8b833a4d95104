"""``convert_qat_model`` (chapter 30 sections 10 and 12, idea 21)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from qat_operators import SHAPES, Exported, operators, recurrent

from workbench.engine.errors import Cancelled, WorkbenchError
from workbench.engine.events import CancelToken
from workbench.engine.export.convert_qat import convert_qat_model
from workbench.engine.files.record import read_record

RNG = np.random.default_rng(0)


def run(file: Path | str, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(ort.InferenceSession(str(file), options).run(None, feed))


def kinds(file: Path) -> list[str]:
    return [node.op_type for node in onnx.load(file).graph.node]


def constants(file: Path) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(file).graph.initializer}


@pytest.mark.parametrize("dynamo", [False, True])
def test_what_torch_exports(dynamo: bool, tmp_path: Path) -> None:
    exported: Exported = operators(dynamo)
    convert_qat_model(str(exported.file), f"{tmp_path}/net", f"{tmp_path}/record.txt")
    fake, deploy = tmp_path / "net_fake_quant_model.onnx", tmp_path / "net_deploy_model.onnx"
    record = read_record(tmp_path / "record.txt")
    layers = [entry for entry in record.layers.values() if entry.scale_w]
    assert len(layers) == len(SHAPES) - 1
    operands = [name for name in record.layers if "#" in name]
    assert sorted(name[-2:] for name in operands) == ["#0", "#1"]  # of the MatMul
    pairs = zip(SHAPES, exported.run(), exported.run(fake), strict=True)
    for name, expected, found in pairs:
        # Half a code of the bias.
        tolerance = (
            0.5 * max(float(entry.scale_d or 0) * max(entry.scale_w) for entry in layers)
            + 1e-5 * np.abs(expected).max()
        )
        np.testing.assert_allclose(found, expected, atol=tolerance, err_msg=name)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {*kinds(deploy), *kinds(fake)}
    assert kinds(deploy).count("AscendQuant") == len(SHAPES) + 1
    assert kinds(deploy).count("AscendDequant") == len(layers)
    assert kinds(deploy).count("AscendAntiQuant") == 2
    types = [array.dtype for array in constants(deploy).values()]
    assert types.count(np.dtype(np.int8)) == len(layers)


class Graph:
    """Builds a file by hand, node by node."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, array: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def quantize(self, name: str, data: str, scale: Any, zero: Any, **attributes: Any) -> str:
        factors = [
            self.constant(f"{name}_s", np.asarray(scale, np.float32)),
            self.constant(f"{name}_z", zero),
        ]
        return self.node("QuantizeLinear", [data, *factors], name, **attributes)

    def pair(self, name: str, data: str, scale: Any, zero: Any, **attributes: Any) -> str:
        codes = self.quantize(f"{name}_q", data, scale, zero, **attributes)
        factors = [f"{name}_q_s", f"{name}_q_z"]
        return self.node("DequantizeLinear", [codes, *factors], f"{name}_dq", **attributes)

    def save(
        self, path: Path, outputs: dict[str, int], shape: tuple[int, ...] = (1, 2, 5, 5)
    ) -> str:
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
            self.constants,
        )
        opset = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
        return str(path)


FLOAT = {"y": TensorProto.FLOAT}


def conv_file(path: Path, axis: int, *, rounded_bias: bool = False) -> str:
    """A convolution whose weight is quantised along axis 0, or turned first along axis 1."""
    generator = np.random.default_rng(1)
    weight = generator.normal(size=(4, 2, 3, 3)).astype(np.float32)
    scale = (np.abs(weight).max((1, 2, 3)) / 127).astype(np.float32)
    s_d = np.float32(0.02)
    bias = generator.normal(size=4).astype(np.float32)
    if rounded_bias:
        bias = (np.rint(bias / (s_d * scale)) * (s_d * scale)).astype(np.float32)
    graph = Graph()
    data = graph.pair("act", "x", s_d, np.int8(3))
    stored = np.ascontiguousarray(weight.transpose(1, 0, 2, 3)) if axis else weight
    graph.constant("w", stored)
    read = graph.pair("wts", "w", scale, np.zeros(4, np.int8), axis=axis)
    if axis:
        read = graph.node("Transpose", [read], "turn", perm=[1, 0, 2, 3])
    graph.node("Conv", [data, read, graph.constant("b", bias)], "y")
    return graph.save(path, FLOAT)


def test_both_places_of_the_weight_scales_give_the_same_files(tmp_path: Path) -> None:
    for axis in (0, 1):
        convert_qat_model(conv_file(tmp_path / f"{axis}.onnx", axis), f"{tmp_path}/{axis}")
    for kind in ("fake_quant", "deploy"):
        files = [(tmp_path / f"{axis}_{kind}_model.onnx").read_bytes() for axis in (0, 1)]
        assert files[0] == files[1]


def test_a_bias_that_was_rounded_before_leaves_no_difference(tmp_path: Path) -> None:
    source = conv_file(tmp_path / "a.onnx", 0, rounded_bias=True)
    convert_qat_model(source, f"{tmp_path}/a")
    x = RNG.normal(size=(1, 2, 5, 5)).astype(np.float32)
    expected, found = (run(f, {"x": x})[0] for f in (source, tmp_path / "a_fake_quant_model.onnx"))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_other_quantisers_write(tmp_path: Path) -> None:
    """A uint8 input, an int8 initialiser, an int32 bias, an Add, a quantised output."""
    graph = Graph()
    data = graph.pair("act", "x", 0.03, np.uint8(120))
    scale = RNG.uniform(0.001, 0.01, 2).astype(np.float32)
    codes = graph.constant("w", RNG.integers(-127, 128, (2, 2, 3, 3)).astype(np.int8))
    factors = [graph.constant("ws", scale), graph.constant("wz", np.zeros(2, np.int8))]
    weight = graph.node("DequantizeLinear", [codes, *factors], "w_dq", axis=0)
    bias = graph.constant("b", np.array([50, -900], np.int32))
    factors = [graph.constant("bs", np.float32(0.03) * scale)]
    bias = graph.node("DequantizeLinear", [bias, *factors], "b_dq", axis=0)
    conv = graph.node("Conv", [data, weight, bias], "conv", pads=[1, 1, 1, 1])
    left = graph.pair("left", conv, 0.05, np.uint8(128))
    total = graph.node("Add", [left, data], "sum")
    graph.quantize("y", total, 0.1, np.uint8(130))
    source = graph.save(tmp_path / "s.onnx", {"y": TensorProto.UINT8})
    convert_qat_model(source, f"{tmp_path}/s", f"{tmp_path}/r.txt")
    record = read_record(tmp_path / "r.txt")
    assert record.layers["conv"].offset_d == 120 - 128
    assert record.layers["conv"].scale_w == pytest.approx(scale.tolist())
    left_entry, right_entry = record.layers["sum#0"], record.layers["sum#1"]
    assert (left_entry.scale_d, left_entry.offset_d) == (pytest.approx(0.05), 0)
    assert (right_entry.scale_d, right_entry.scale_w) == (pytest.approx(0.03), ())
    deploy = tmp_path / "s_deploy_model.onnx"
    stored = constants(deploy)
    assert any(
        np.array_equal(a, numpy_helper.to_array(graph.constants[2])) for a in stored.values()
    )
    assert any(np.array_equal(a, [50, -900]) for a in stored.values())
    anti = [n for n in onnx.load(deploy).graph.node if n.op_type == "AscendAntiQuant"]
    assert [n.output[0] for n in anti] == ["sum.anti_quant.output0", "sum.anti_quant.output01"]
    attributes = {a.name: helper.get_attribute_value(a) for a in anti[0].attribute}
    assert attributes == {"scale": pytest.approx(0.05), "offset": 0.0, "dst_type": b"INT8"}
    # The input is quantised once for the convolution and the Add.
    assert kinds(deploy).count("AscendQuant") == 3
    assert onnx.load(deploy).graph.output[0].type.tensor_type.elem_type == TensorProto.INT8
    x = RNG.normal(size=(1, 2, 5, 5)).astype(np.float32)
    expected = run(source, {"x": x})[0].astype(int) - 128
    found = run(tmp_path / "s_fake_quant_model.onnx", {"x": x})[0]
    assert found.dtype == np.int8
    assert np.abs(found - expected).max() <= 1
    assert np.mean(found != expected) < 0.05


def test_a_grouped_deconvolution_behind_a_reshape(tmp_path: Path) -> None:
    graph = Graph()
    data = graph.pair("act", "x", 0.02, np.int8(0))
    weight = RNG.normal(size=(6, 1, 2, 2)).astype(np.float32)  # Cout first: 3 a group
    scale = (np.abs(weight).max((1, 2, 3)) / 127).astype(np.float32)
    graph.constant("w", weight)
    read = graph.pair("wts", "w", scale, np.zeros(6, np.int8), axis=0)
    shape = graph.constant("shape", np.array([2, 3, 1, 2, 2]))
    read = graph.node("Reshape", [read, shape], "parted")
    read = graph.node("Transpose", [read], "turned", perm=[0, 2, 1, 3, 4])
    shape = graph.constant("stored", np.array([2, 3, 2, 2]))
    read = graph.node("Reshape", [read, shape], "stored_weight")
    graph.node("ConvTranspose", [data, read], "y", group=2)
    source = graph.save(tmp_path / "d.onnx", FLOAT)
    convert_qat_model(source, f"{tmp_path}/d", f"{tmp_path}/r.txt")
    assert read_record(tmp_path / "r.txt").layers["y"].scale_w == pytest.approx(scale.tolist())
    x = RNG.normal(size=(1, 2, 5, 5)).astype(np.float32)
    expected, found = (run(f, {"x": x})[0] for f in (source, tmp_path / "d_fake_quant_model.onnx"))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def relu_behind_a_pair(graph: Graph) -> None:
    graph.node("Relu", [graph.pair("act", "x", 0.1, np.int8(0))], "y")


def weight_only(graph: Graph) -> None:
    graph.constant("w", np.ones((1, 2, 1, 1), np.float32))
    graph.node("Conv", ["x", graph.pair("wts", "w", 0.1, np.int8(0))], "y")


def input_only(graph: Graph) -> None:
    graph.constant("w", np.ones((1, 2, 1, 1), np.float32))
    graph.node("Conv", [graph.pair("act", "x", 0.1, np.int8(0)), "w"], "y")


def unequal_pair(graph: Graph) -> None:
    codes = graph.quantize("q", "x", 0.1, np.int8(0))
    other = graph.constant("other", np.float32(0.2))
    graph.node("Add", [graph.node("DequantizeLinear", [codes, other, "q_z"], "dq"), "x"], "y")


def weight_with_offset(graph: Graph) -> None:
    graph.constant("w", np.ones((1, 2, 1, 1), np.float32))
    weight = graph.pair("wts", "w", 0.1, np.int8(4))
    graph.node("Conv", [graph.pair("act", "x", 0.1, np.int8(0)), weight], "y")


def many_scales(graph: Graph) -> None:
    zero = np.zeros(2, np.int8)
    graph.node("Add", [graph.pair("act", "x", [0.1, 0.2], zero, axis=1), "x"], "y")


def nothing(graph: Graph) -> None:
    graph.node("Relu", ["x"], "y")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (relu_behind_a_pair, "act_dq is read by Relu y"),
        (weight_only, "Conv y: its input has no Q/DQ pair, .*before its clip bounds were found"),
        (input_only, "Conv y: its weight has no Q/DQ pair"),
        (unequal_pair, "Add y: .*different factors"),
        (weight_with_offset, "Conv y: its zero point is not 0"),
        (many_scales, "Add y: .*2 scales"),
        (nothing, "holds no QuantizeLinear"),
    ],
)
def test_what_cannot_be_converted_is_named_and_nothing_is_written(
    build: Callable[[Graph], None], words: str, tmp_path: Path
) -> None:
    graph = Graph()
    build(graph)
    source = graph.save(tmp_path / "m.onnx", FLOAT)
    with pytest.raises(RuntimeError, match=words) as caught:
        convert_qat_model(source, f"{tmp_path}/out/net", f"{tmp_path}/record.txt")
    assert isinstance(caught.value, WorkbenchError)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_recurrent_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="recurrent layers are not converted"):
        convert_qat_model(str(recurrent(False).file), f"{tmp_path}/net")
    assert not list(tmp_path.iterdir())


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
        convert_qat_model(f"{tmp_path}/none.onnx", f"{tmp_path}/net")
    with pytest.raises(TypeError, match="record_file is a int"):
        convert_qat_model("a", "b", 3)  # type: ignore[arg-type]
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match="not an ONNX file"):
        convert_qat_model(f"{tmp_path}/text.onnx", f"{tmp_path}/net")
    source = conv_file(tmp_path / "a.onnx", 0)
    with pytest.raises(ValueError, match="prefix"):
        convert_qat_model(source, f"{tmp_path}/{'x' * 300}")
    with pytest.raises(PermissionError):
        convert_qat_model(source, f"{tmp_path}/net", str(tmp_path))
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        convert_qat_model(source, f"{tmp_path}/net", cancel=token)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "text.onnx"]
