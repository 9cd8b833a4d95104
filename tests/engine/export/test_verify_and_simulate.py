"""The simulator on hand-made deploy graphs, and the comparison of all forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from workbench.engine.errors import Cancelled
from workbench.engine.events import CancelToken, Notice, Progress
from workbench.engine.export.save import save_model
from workbench.engine.export.simulate import DeploySimulator
from workbench.engine.export.torch_module import to_fake_quant
from workbench.engine.export.verify import verify_export


def deploy_gemm(path: Path, weight: np.ndarray, bias: np.ndarray, offset: float) -> str:
    """AscendQuant -> Gemm -> AscendDequant -> Relu, written by hand after section 13.3."""
    words = np.asarray([0.5], np.float32).view(np.uint32).astype(np.uint64)
    nodes = [
        helper.make_node(
            "AscendQuant", ["x"], ["q"], "fc.quant", scale=4.0, offset=offset, dst_type="INT8"
        ),
        helper.make_node("Gemm", ["q", "w", "b"], ["a"], "fc"),
        helper.make_node("AscendDequant", ["a", "p"], ["d"], "fc.dequant", dtype=0),
        helper.make_node("Relu", ["d"], ["y"], "act"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[1]])],
        [
            numpy_helper.from_array(weight.astype(np.int8), "w"),
            numpy_helper.from_array(bias.astype(np.int32), "b"),
            numpy_helper.from_array(words, "p"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save(model, path)
    return str(path)


def test_by_hand(tmp_path):
    path = deploy_gemm(tmp_path / "d.onnx", np.asarray([[2], [-3]]), np.asarray([10]), 100.0)
    x = np.asarray([[1.0, 0.125], [100.0, -0.375]], np.float32)
    # codes minus offset: 4 and RNE(0.5) = 0; 27 (127 - 100) and RNE(-1.5) = -2
    result = DeploySimulator(path).run({"x": x}, taps=True)
    assert result["fc"].tolist() == [[(8 + 10) * 0.5], [(54 + 6 + 10) * 0.5]]
    assert result["y"].tolist() == [[9.0], [35.0]]


def test_sums_above_float32_precision_are_exact(tmp_path):
    """20000 products of 127 and 127 need 29 bits: a float32 sum would be off."""
    n = 20001
    weight = np.full((n, 1), 127)
    weight[-1] = 1
    path = deploy_gemm(tmp_path / "d.onnx", weight, np.asarray([1]), 0.0)
    x = np.full((1, n), 1000.0, np.float32)
    expected = np.float32(127 * 127 * (n - 1) + 127 + 1) * np.float32(0.5)
    simulator = DeploySimulator(path)
    assert simulator.run({"x": x})["y"].item() == expected
    assert simulator.overflows == {}


def test_overflow_of_int32_is_counted(tmp_path):
    weight = np.full((200, 2), 127)
    weight[:, 1] = 0
    path = deploy_gemm(tmp_path / "d.onnx", weight, np.asarray([2**31 - 1000, 0]), 0.0)
    simulator = DeploySimulator(path)
    simulator.run({"x": np.full((3, 200), 1000.0, np.float32)})
    assert simulator.overflows == {"fc": 3}


def test_missing_input_and_file(tmp_path):
    path = deploy_gemm(tmp_path / "d.onnx", np.asarray([[2]]), np.asarray([1]), 0.0)
    with pytest.raises(RuntimeError, match="x"):
        DeploySimulator(path).run({})
    with pytest.raises(FileNotFoundError):
        DeploySimulator(tmp_path / "none.onnx")


@pytest.fixture
def saved(make_case):
    case = make_case()
    save_model(case.onnx_file, case.record_file, case.save_path)
    return case


def test_all_forms_agree(saved):
    seen = []
    module = to_fake_quant(saved.module, saved.record)
    batches = [saved.inputs, (saved.inputs[0] * 1.5,)]
    for parity in verify_export(module, saved.save_path, batches, on_event=seen.append):
        assert parity.ok
        assert parity.max_steps <= 1
        assert parity.first_layer is None
    assert [e.done for e in seen if isinstance(e, Progress)] == [0, 1, 2]


def test_overflowing_layers_are_reported(saved):
    """A bias at the very edge of int32: about half of the sums leave it."""
    module = to_fake_quant(saved.module, saved.record)
    model = onnx.load(saved.file("deploy"))
    bias = next(t for t in model.graph.initializer if t.name == "fc.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(5, 2**31 - 1, np.int32), "fc.bias"))
    onnx.save(model, saved.file("deploy"))
    seen = []
    verify_export(module, saved.save_path, [saved.inputs], on_event=seen.append)
    notices = [e.message for e in seen if isinstance(e, Notice)]
    assert len(notices) == 1
    assert "fc" in notices[0]
    assert "int32" in notices[0]


def test_the_first_wrong_layer_is_named(saved):
    module = to_fake_quant(saved.module, saved.record)
    with torch.no_grad():
        module.up.codes[0, 0] += 9
    pairs = verify_export(module, saved.save_path, [saved.inputs])
    torch_onnx, onnx_deploy, torch_deploy = pairs
    assert not torch_onnx.ok
    assert torch_onnx.first_layer == torch_deploy.first_layer == "up"
    assert torch_onnx.share_beyond_one_step > 0.5
    assert onnx_deploy.ok


def test_a_deploy_file_of_another_record_is_found(saved):
    model = onnx.load(saved.file("deploy"))
    for node in model.graph.node:
        if node.name == "pool.quant":
            for attribute in node.attribute:
                if attribute.name == "offset":
                    attribute.f += 40
    onnx.save(model, saved.file("deploy"))
    module = to_fake_quant(saved.module, saved.record)
    torch_onnx, onnx_deploy, _ = verify_export(module, saved.save_path, [saved.inputs])
    assert torch_onnx.ok
    assert not onnx_deploy.ok
    assert onnx_deploy.first_layer == "pool"


def test_verify_refusals(saved, tmp_path):
    module = to_fake_quant(saved.module, saved.record)
    with pytest.raises(ValueError, match="batch"):
        verify_export(module, saved.save_path, [])
    with pytest.raises(ValueError, match="x"):
        verify_export(module, saved.save_path, [saved.inputs * 2])
    with pytest.raises(FileNotFoundError):
        verify_export(module, str(tmp_path / "elsewhere"), [saved.inputs])
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        verify_export(module, saved.save_path, [saved.inputs], cancel=token)
