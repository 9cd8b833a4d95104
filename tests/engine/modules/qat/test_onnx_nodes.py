"""What torch's exporters make of single operators (chapter 30 sections 9.4 and 12, idea 20)."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
import torch
from qat_operators import SHAPES, export, operators, recurrent

from workbench.engine.modules.qat.convolutions import Conv2dQAT

INT16 = {"retrain_data_config": {"dst_type": "INT16"}}


@pytest.mark.parametrize("dynamo", [False, True])
def test_every_operator_is_standard_q_dq(dynamo: bool) -> None:
    exported = operators(dynamo)
    graph = onnx.load(exported.file).graph
    count = {kind: sum(n.op_type == kind for n in graph.node) for kind in ("QuantizeLinear",)}
    assert count["QuantizeLinear"] == 2 * len(SHAPES)
    assert {n.domain for n in graph.node} <= {"", "ai.onnx"}
    for name, found, expected in zip(SHAPES, exported.run(), exported.outputs, strict=True):
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5, err_msg=name)


@pytest.mark.parametrize("dynamo", [False, True])
def test_recurrent_layers_are_one_node(dynamo: bool) -> None:
    exported = recurrent(dynamo)
    kinds = [n.op_type for n in onnx.load(exported.file).graph.node]
    assert kinds.count("LSTM") == kinds.count("GRU") == 1
    assert kinds.count("QuantizeLinear") == 8
    for found, expected in zip(exported.run(), exported.outputs, strict=True):
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_sixteen_bits_need_opset_21() -> None:
    torch.manual_seed(0)
    model = Conv2dQAT(2, 3, 3, config=INT16)
    inputs = (torch.randn(1, 2, 5, 5),)
    exported = export(model, inputs, True, 21)
    np.testing.assert_allclose(exported.run()[0], model(*inputs).detach().numpy(), atol=1e-5)
    zero_points = [n.input[2] for n in onnx.load(exported.file).graph.node if n.op_type[0] == "Q"]
    types = {i.name: i.data_type for i in onnx.load(exported.file).graph.initializer}
    assert onnx.TensorProto.INT16 in {types[name] for name in zero_points}
    with pytest.raises(RuntimeError, match="opset_version=21"):
        export(model, inputs, False, 17)


def test_before_the_bounds_are_found_an_input_stays_float(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Conv2dQAT(2, 3, 1).eval()
    model.layer_name = "stem"
    with caplog.at_level(logging.WARNING):
        program = torch.export.export(model, (torch.randn(1, 2, 3, 3),))
    assert "stem is exported before" in caplog.text
    kinds = [str(n.target) for n in program.graph.nodes]
    assert not any("per_tensor" in kind for kind in kinds)
    assert any("per_channel" in kind for kind in kinds)
