"""The saved files compute what the model in training computes (chapter 30 section 12, 13)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from qat_models import Files, evaluate, make_model
from torch import Tensor, nn

from workbench.engine import save_quant_retrain_model
from workbench.engine.files.record import Record, read_record
from workbench.engine.flows.qat_state import wrappers

CHANNELS = 8


class EveryLayer(nn.Module):
    """One layer of each kind on the same input, each with an output of its own.

    So no later quantiser hides what an earlier layer gets wrong.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(CHANNELS, 4, 3)
        self.conv2d = nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.conv3d = nn.Conv3d(CHANNELS, 4, (1, 3, 3))
        self.grouped = nn.Conv2d(CHANNELS, 4, 3, groups=2)
        self.up1d = nn.ConvTranspose1d(CHANNELS, 4, 2, stride=2)
        self.up2d = nn.ConvTranspose2d(CHANNELS, 6, 3, stride=2, groups=2, output_padding=1)
        self.linear = nn.Linear(CHANNELS, 5)
        self.rows = nn.Linear(6, 5)
        self.wide = nn.Conv2d(CHANNELS, 4, 3)
        self.int4 = nn.Conv2d(CHANNELS, 4, 3)
        self.int4_both = nn.Linear(CHANNELS, 5)
        self.learned = nn.ConvTranspose2d(CHANNELS, 4, 2, groups=2)
        self.before_bn = nn.Conv2d(CHANNELS, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.one_scale = nn.Conv2d(CHANNELS, 4, 3)
        self.bn_one = nn.BatchNorm2d(4)
        self.before_bn1d = nn.Conv1d(CHANNELS, 4, 3)
        self.bn1d = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        line, mean = x.flatten(2), x.mean((2, 3))
        return {
            "conv1d": self.conv1d(line),
            "conv2d": self.conv2d(x),
            "conv3d": self.conv3d(x.unsqueeze(2)),
            "grouped": self.grouped(x),
            "up1d": self.up1d(line),
            "up2d": self.up2d(x),
            "linear": self.linear(mean),
            "rows": self.rows(x),
            "wide": self.wide(x),
            "int4": self.int4(x),
            "int4_both": self.int4_both(mean),
            "learned": self.learned(x),
            "before_bn": self.bn(self.before_bn(x)),
            "one_scale": self.bn_one(self.one_scale(x)),
            "before_bn1d": self.bn1d(self.before_bn1d(line)),
        }


def every_layer() -> EveryLayer:
    torch.manual_seed(3)
    model = EveryLayer()
    for norm in (model.bn, model.bn_one, model.bn1d):
        norm.weight.data.uniform_(-2, 2)
        norm.weight.data[0] = -1.5
        norm.bias.data.normal_()
        norm.running_var.uniform_(0.5, 2)
    # The extreme weight of a channel that the batch norm turns over: its code must not be cut.
    model.before_bn.weight.data[0, 0, 0, 0] = -3.0
    model.one_scale.weight.data[0, 0, 0, 0] = -3.0
    return model


SETTINGS: dict[str, Any] = {
    "wide": {"retrain_data_config": {"dst_type": "INT16"}},
    "int4": {"retrain_weight_config": {"dst_type": "INT4"}},
    "int4_both": {
        "retrain_data_config": {"dst_type": "INT4"},
        "retrain_weight_config": {"dst_type": "INT4"},
    },
    "learned": {"retrain_weight_config": {"algo": "ulq_retrain"}},
    "one_scale": {"retrain_weight_config": {"channel_wise": False}},
}
NAMES = [
    name
    for name, module in EveryLayer().named_children()
    if not isinstance(module, nn.modules.batchnorm._BatchNorm)
]


class Saved:
    """The model trained for two steps, its outputs, its files."""

    def __init__(self, folder: Path) -> None:
        self.files = Files(folder)
        self.x = torch.randn(3, CHANNELS, 6, 6, generator=torch.Generator().manual_seed(5))
        self.model = make_model(self.files, every_layer(), self.x, layers=SETTINGS)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.02)
        for _ in range(2):
            loss = sum(y.pow(2).mean() for y in self.model(self.x).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.eager: dict[str, Tensor] = evaluate(self.model, self.x)
        save_quant_retrain_model(
            self.files.config,
            self.model,
            self.files.record,
            self.files.save_path,
            self.x,
            output_names=list(self.eager),
        )

    @property
    def record(self) -> Record:
        return read_record(self.files.record)

    def run(self, kind: str) -> dict[str, np.ndarray]:
        session = ort.InferenceSession(self.files.onnx(kind), providers=["CPUExecutionProvider"])
        return dict(zip(self.eager, session.run(None, {"x": self.x.numpy()}), strict=True))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("parity"))


@pytest.fixture(scope="module")
def fake_quant(saved: Saved) -> dict[str, np.ndarray]:
    return saved.run("fake_quant")


@pytest.mark.parametrize("name", NAMES)
def test_the_fake_quant_file_computes_what_the_model_does(
    saved: Saved, fake_quant: dict[str, np.ndarray], name: str
) -> None:
    eager = saved.eager[name].numpy()
    entry = saved.record.layers[name]
    assert entry.scale_d is not None
    step = entry.scale_d * max(entry.scale_w)
    difference = np.abs(fake_quant[name] - eager).max()
    assert difference <= 0.5 * step + 1e-5 * np.ptp(eager)


@pytest.mark.parametrize("name", NAMES)
def test_the_record_says_what_the_layer_holds(saved: Saved, name: str) -> None:
    entry, layer = saved.record.layers[name], wrappers(saved.model)[name]
    settings = SETTINGS.get(name, {})
    assert entry.act_type == settings.get("retrain_data_config", {}).get("dst_type", "INT8")
    assert entry.wts_type == settings.get("retrain_weight_config", {}).get("dst_type", "INT8")
    per_tensor = name in ("linear", "rows", "int4_both")
    assert len(entry.scale_w) == (
        1 if per_tensor else len(layer.bias) if layer.bias is not None else layer.out_channels
    )


def codes_of(saved: Saved, name: str) -> np.ndarray:
    """The layer's integers in the deploy file, for a layer whose weight is stored as it is."""
    model = onnx.load(saved.files.onnx("deploy"))
    node = next(node for node in model.graph.node if node.name == name)
    stored = {t.name: t for t in model.graph.initializer}
    return numpy_helper.to_array(stored[node.input[1]])


def test_deployed_integers_are_those_of_the_trained_weights(saved: Saved) -> None:
    for name in ("conv2d", "grouped"):
        weight = wrappers(saved.model)[name].quant_module.replaced_module.weight.detach().numpy()
        scale = np.asarray(saved.record.layers[name].scale_w, np.float32).reshape(-1, 1, 1, 1)
        expected = np.clip(np.rint(weight / scale), -128, 127)
        np.testing.assert_array_equal(codes_of(saved, name), expected)


@pytest.mark.parametrize(("name", "norm"), [("before_bn", "bn"), ("one_scale", "bn_one")])
def test_a_channel_turned_over_keeps_its_extreme_weight(saved: Saved, name: str, norm: str) -> None:
    wrapper = wrappers(saved.model)[name]
    norm_module = wrapper.bn_module
    weight = wrapper.quant_module.replaced_module.weight.detach()
    assert norm_module.weight[0] < 0
    assert weight[0].abs().argmax() == 0
    factor = norm_module.weight / torch.sqrt(norm_module.running_var + norm_module.eps)
    folded = (weight * factor.reshape(-1, 1, 1, 1)).detach().numpy()
    code = float(codes_of(saved, name)[0, 0, 0, 0])
    assert abs(code) == 127
    assert code * saved.record.layers[name].scale_w[0] == pytest.approx(folded[0, 0, 0, 0])


def test_the_deploy_file_shares_one_quant_of_the_common_input(saved: Saved) -> None:
    model = onnx.load(saved.files.onnx("deploy"))
    quants = [node for node in model.graph.node if node.op_type == "AscendQuant"]
    on_input = [node for node in quants if node.input[0] == "x"]
    # One for conv2d, grouped, up2d and before_bn, one for rows and one_scale, and three alone.
    assert len(on_input) == 5
