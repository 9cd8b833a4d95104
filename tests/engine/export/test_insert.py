"""Graphs as other exporters write them, by hand (chapter 10 sections 6.3, 13.2 and D21)."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from workbench.engine.export.save import save_model
from workbench.engine.export.simulate import DeploySimulator
from workbench.engine.files.record import LayerRecord, Record, write_record

SCALE_D, OFFSET_D, SCALE_W = 0.02, -5, 0.01
RANDOM = np.random.default_rng(0)
CODES = RANDOM.integers(-128, 128, (6, 4))
BIAS = RANDOM.standard_normal(4).astype(np.float32)
X = RANDOM.standard_normal((2, 3, 6)).astype(np.float32)


def write(folder: Path, operands: tuple[str, str], bias: np.ndarray) -> tuple[str, str, str]:
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"], name="fc"),
            helper.make_node("Add", list(operands), ["sum"], name="add"),
            helper.make_node("Relu", ["sum"], ["y"], name="relu"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3, 4])],
        [
            numpy_helper.from_array((CODES * np.float32(SCALE_W)).astype(np.float32), "w"),
            numpy_helper.from_array(bias, "bias"),
        ],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "m.onnx")
    entry = LayerRecord(
        scale_d=SCALE_D,
        offset_d=OFFSET_D,
        scale_w=(SCALE_W,),
        offset_w=(0,),
        act_type="INT8",
        wts_type="INT8",
    )
    write_record(str(folder / "r.txt"), Record({"fc": entry}))
    return str(folder / "m.onnx"), str(folder / "r.txt"), f"{folder}/"


def by_hand(before: bool) -> np.ndarray:
    inverse = np.float32(1) / np.float32(SCALE_D)
    codes = np.clip(np.rint(X * inverse) + OFFSET_D, -128, 127).astype(np.int64) - OFFSET_D
    deq = np.float32(SCALE_D) * np.float32(SCALE_W)
    total = codes @ CODES
    if before:
        y = (total + np.rint(BIAS / deq).astype(np.int64)).astype(np.float32) * deq
    else:
        y = total.astype(np.float32) * deq + BIAS
    return np.maximum(y, 0)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("operands", [("product", "bias"), ("bias", "product")])
def test_either_operand_order(tmp_path, operands, before):
    paths = write(tmp_path, operands, BIAS)
    save_model(*paths, bias_before_dequant=before)
    graph = onnx.load(tmp_path / "deploy_model.onnx").graph
    middle = ["Add", "AscendDequant"] if before else ["AscendDequant", "Add"]
    assert [n.op_type for n in graph.node] == ["AscendQuant", "MatMul", *middle, "Relu"]
    stored = {t.name: t for t in graph.initializer}
    assert stored["w"].data_type == TensorProto.INT8
    assert np.array_equal(numpy_helper.to_array(stored["w"]), CODES)
    add = next(n for n in graph.node if n.op_type == "Add")
    bias = stored[add.input[operands.index("bias")]]
    assert bias.data_type == (TensorProto.INT32 if before else TensorProto.FLOAT)
    expected = by_hand(before)
    session = ort.InferenceSession(
        str(tmp_path / "fake_quant_model.onnx"), providers=["CPUExecutionProvider"]
    )
    (got,) = session.run(None, {"x": X})
    simulated = DeploySimulator(tmp_path / "deploy_model.onnx").run({"x": X})["y"]
    assert np.array_equal(simulated, got)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_an_addend_that_is_no_bias_is_left_where_it_is(tmp_path):
    """Of another shape than one value a column: not a bias, whatever is asked."""
    paths = write(tmp_path, ("bias", "product"), np.ones((3, 1), np.float32))
    save_model(*paths, bias_before_dequant=True)
    graph = onnx.load(tmp_path / "deploy_model.onnx").graph
    order = [n.op_type for n in graph.node]
    assert order == ["AscendQuant", "MatMul", "AscendDequant", "Add", "Relu"]
    kinds = {t.name: t.data_type for t in graph.initializer}
    assert kinds["bias"] == TensorProto.FLOAT


def quantised(folder: Path, nodes, shapes, constants) -> tuple[onnx.GraphProto, dict]:
    """``save_model`` on a graph from x to y in which the node ``layer`` is recorded."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shapes[0])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shapes[1])],
        [numpy_helper.from_array(array, key) for key, array in constants.items()],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "m.onnx")
    entry = LayerRecord(
        scale_d=SCALE_D,
        offset_d=OFFSET_D,
        scale_w=(SCALE_W if "w" in constants else 1.0,),
        offset_w=(0,),
        act_type="INT8",
        wts_type="INT8" if "w" in constants else None,
    )
    write_record(str(folder / "r.txt"), Record({"layer": entry}))
    save_model(str(folder / "m.onnx"), str(folder / "r.txt"), f"{folder}/")
    made = onnx.load(folder / "deploy_model.onnx").graph
    return made, {t.name: numpy_helper.to_array(t) for t in made.initializer}


def both_agree(folder: Path, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(
        str(folder / "fake_quant_model.onnx"), providers=["CPUExecutionProvider"]
    )
    (got,) = session.run(None, {"x": x})
    simulated = DeploySimulator(folder / "deploy_model.onnx").run({"x": x})["y"]
    assert np.array_equal(simulated, got)
    return got


def codes_of(x: np.ndarray) -> np.ndarray:
    inverse = np.float32(1) / np.float32(SCALE_D)
    return np.clip(np.rint(x * inverse) + OFFSET_D, -128, 127).astype(np.int64) - OFFSET_D


@pytest.mark.parametrize("read_twice", [False, True])
def test_a_pool_behind_its_own_pad(tmp_path, read_twice):
    """The quantiser stands before ``<layer>_pad``, unless somebody else reads what was padded."""
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["padded"], name="layer_pad"),
        helper.make_node(
            "AveragePool", ["padded"], ["pooled"], name="layer", kernel_shape=[2, 2], strides=[2, 2]
        ),
    ]
    if read_twice:
        nodes.append(helper.make_node("ReduceMax", ["padded"], ["top"], name="top"))
        nodes.append(helper.make_node("Add", ["pooled", "top"], ["y"], name="sum"))
    else:
        nodes[-1].output[0] = "y"
    pads = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)}
    graph, _ = quantised(tmp_path, nodes, ([1, 2, 4, 4], [1, 2, 3, 3]), pads)
    maker = {v: n for n in graph.node for v in n.output}
    by_name = {n.name: n for n in graph.node}
    before = maker[by_name["layer"].input[0]]
    assert before.name == ("layer.quant" if read_twice else "layer_pad")
    x = RANDOM.standard_normal((1, 2, 4, 4)).astype(np.float32)
    got = both_agree(tmp_path, x)
    wide = np.pad(codes_of(x), ((0, 0), (0, 0), (1, 1), (1, 1)))
    means = wide.reshape(1, 2, 3, 2, 3, 2).mean((3, 5)) * np.float32(SCALE_D)
    if read_twice:
        means = means + np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))).max()
    np.testing.assert_allclose(got, means, rtol=1e-5, atol=1e-6)


def test_a_weight_behind_a_transpose_keeps_its_layout(tmp_path):
    nodes = [
        helper.make_node("Transpose", ["w"], ["turned"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["y"], name="layer"),
    ]
    weight = (CODES.T * np.float32(SCALE_W)).astype(np.float32)
    graph, stored = quantised(tmp_path, nodes, ([2, 3, 6], [2, 3, 4]), {"w": weight})
    assert stored["w"].dtype == np.int8
    assert np.array_equal(stored["w"], CODES.T)
    assert "Transpose" in {n.op_type for n in graph.node}
    deq = np.float32(SCALE_D) * np.float32(SCALE_W)
    expected = (codes_of(X) @ CODES).astype(np.float32) * deq
    assert np.array_equal(both_agree(tmp_path, X), expected)


def test_a_taken_name_gets_a_counter(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["layer.quant.output0"], name="layer.quant"),
        helper.make_node("MatMul", ["layer.quant.output0", "w"], ["y"], name="layer"),
    ]
    weight = (CODES * np.float32(SCALE_W)).astype(np.float32)
    graph, _ = quantised(tmp_path, nodes, ([2, 3, 6], [2, 3, 4]), {"w": weight})
    names = [n.name for n in graph.node]
    assert names == ["layer.quant", "layer.quant1", "layer", "layer.dequant"]
    values = [v for n in graph.node for v in n.output]
    assert len(set(values)) == len(values)
    both_agree(tmp_path, X)
