"""LSTM and GRU in graph QAT (chapter 30 section 8)."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import rnn_models
import torch
from qat_models import Files, make_model, sgd
from torch import Tensor, nn

from workbench.engine import restore_quant_retrain_model, save_quant_retrain_model
from workbench.engine.files.record import read_record


def train(model: nn.Module, inputs: tuple[Tensor, ...], steps: int = 3) -> None:
    optimizer = sgd(model)
    model.train()
    for _ in range(steps):
        loss = (model(*inputs)[0] - 1).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module", params=["LSTM", "GRU"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """The float model, the one in training after three steps, and the files."""
    files = Files(tmp_path_factory.mktemp(request.param))
    net = rnn_models.model(request.param)
    per_gate = {"rnn": {"retrain_weight_config": {"channel_wise": False}}}
    layers = per_gate if request.param == "GRU" else {}
    model = make_model(files, net, rnn_models.data(net, 2, length=1), layers=layers)
    train(model, rnn_models.data(net, 8, length=6))
    return net, model, files


def test_gradients_reach_the_weights_and_the_bounds(case) -> None:
    net, model, _ = case
    assert not torch.equal(model.rnn.weight_hh_l0, net.rnn.weight_hh_l0)
    assert not torch.equal(model.rnn.bias_ih_l0, net.rnn.bias_ih_l0)
    operator = model.rnn.quant_module
    assert operator.h_clip_max.grad.abs() > 0
    assert operator.acts_clip_max.grad.abs() > 0


def test_shapes_are_those_of_torch(case) -> None:
    net, model, _ = case
    inputs = rnn_models.data(net, 3)
    for expected, found in zip(net(*inputs), model(*inputs), strict=True):
        assert expected.shape == found.shape


def test_the_saved_file_computes_one_step_as_the_model_does(case) -> None:
    net, model, files = case
    inputs = rnn_models.data(net, 4, seed=3, length=1)
    model.eval()
    with torch.no_grad():
        eager = model(*inputs)
    save_quant_retrain_model(files.config, model, files.record, files.save_path, inputs)
    entry = read_record(files.record).layers["rnn"]
    gates = 4 if net.kind == "LSTM" else 3
    assert len(entry.scale_w) == len(entry.scale_r) == gates * rnn_models.HIDDEN
    session = ort.InferenceSession(files.onnx("fake_quant"), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    found = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    # The fc's own quantiser may tip over by one step; the states show the layer itself.
    for ours, theirs in zip(eager[1:], found[1:], strict=True):
        assert np.abs(ours.numpy() - theirs).max() < 2e-3
    assert Path(files.onnx("deploy")).exists()


def test_a_checkpoint_restores_and_a_copy_is_its_own(case) -> None:
    net, model, files = case
    torch.save(model.state_dict(), files.checkpoint)
    inputs = rnn_models.data(net, 2, length=1)
    model.eval()
    restored = restore_quant_retrain_model(
        files.config, rnn_models.model(net.kind), files.record, inputs, files.checkpoint
    ).eval()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(*inputs)[0]
        assert torch.equal(restored(*inputs)[0], expected)
    train(twin, rnn_models.data(net, 8))
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(*inputs)[0], expected)
