"""The table of torch's operators is read once, and no export sees another's entries."""

from __future__ import annotations

import onnxruntime as ort
import pytest
import torch
from onnxscript.onnx_opset import opset18
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from workbench.engine.export import torchlib
from workbench.engine.graph.quiet import quiet

NET, X = nn.Sequential(nn.Linear(3, 2), nn.Sigmoid()), torch.rand(2, 3)


def exported(**options: object) -> Tensor:
    with quiet():
        made = torch.onnx.export(NET, (X,), dynamo=True, opset_version=18, verbose=False, **options)
    session = ort.InferenceSession(made.model_proto.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    return torch.from_numpy(found)


def negated(x):
    return opset18.Neg(x)


def test_is_read_once_and_no_translation_stays_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ONNXRegistry.from_torchlib
    reads = []

    def read(*, opset_version: int) -> ONNXRegistry:
        reads.append(opset_version)
        return plain(opset_version=opset_version)

    monkeypatch.setattr(torchlib, "_read", read)
    monkeypatch.setattr(torchlib, "_known", {})
    with torch.no_grad():
        linear, wanted = NET[0](X), NET(X)
    mine = {torch.ops.aten.sigmoid.default: negated}
    with torchlib.kept_torchlib():
        assert torch.allclose(exported(custom_translation_table=mine), -linear, atol=1e-6)
        assert torch.allclose(exported(), wanted, atol=1e-6)
    assert reads == [18]
    assert ONNXRegistry.from_torchlib == plain


def test_has_what_torch_has() -> None:
    wanted = ONNXRegistry.from_torchlib(opset_version=18)
    with torchlib.kept_torchlib():
        found = ONNXRegistry.from_torchlib(opset_version=18)
        again = ONNXRegistry.from_torchlib(opset_version=18)
        other = ONNXRegistry.from_torchlib(opset_version=20)
    assert found.opset_version == 18 and other.opset_version == 20
    for target, known in wanted.functions.items():
        functions = [entry.onnx_function for entry in known]
        assert [entry.onnx_function for entry in found.functions[target]] == functions, target
        assert again.functions[target] is not found.functions[target]
    assert list(found.functions) == list(wanted.functions)
