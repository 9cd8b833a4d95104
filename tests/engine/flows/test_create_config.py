"""``create_quant_config`` with a text config, and channel-wise Linear from config to files."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from google.protobuf import text_format
from torch import Tensor, nn

from workbench.engine import create_quant_config, quantize_model, save_model
from workbench.engine.files.config import read_config
from workbench.engine.files.record import read_record
from workbench.engine.files.sidecar import read_sidecar
from workbench.engine.files.text_config import format_text_config
from workbench.engine.graph.capture import capture


class Net(nn.Module):
    """A convolution, a Linear with one loud output on 3-D input, a pool, a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.act = nn.ReLU()
        self.pool = nn.AvgPool2d(2)
        self.mix = nn.Linear(8, 12)
        self.head = nn.Linear(12, 6)
        with torch.no_grad():
            self.mix.weight[0] *= 30

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.conv(x))).flatten(2).transpose(1, 2)
        x = self.act(self.mix(x))
        result: Tensor = self.head(x.mean(1))
        return result


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_empty_text_and_no_text_give_identical_files(
    net: Net, x: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty = tmp_path / "empty.cfg"
    empty.write_text("")
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    create_quant_config(str(a), net, (x,))
    # The text decides: the arguments before it are ignored, skip_layers with a warning.
    create_quant_config(str(b), net, (x,), ["head"], 7, False, str(empty))
    assert a.read_bytes() == b.read_bytes()
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 1 and "skip_layers" in warned[0]
    names = [key for key, value in json.loads(a.read_text()).items() if isinstance(value, dict)]
    assert names == sorted(names) == ["conv", "head", "mix", "pool"]


def test_generate_parse_regenerate_is_stable(net: Net, x: Tensor, tmp_path: Path) -> None:
    text = tmp_path / "my.cfg"
    text.write_text(
        'batch_num: 2 skip_layers: "mix" '
        "common_config { hfmg_quantize { num_of_bins: 2048 } arq_quantize { channel_wise: true } }"
        'override_layer_configs { layer_name: "act" calibration_config { ifmr_quantize {} } }'
    )
    written = tmp_path / "c.json"
    create_quant_config(str(written), net, (x,), config_defination=str(text))
    data = json.loads(written.read_text())
    assert data["batch_num"] == 2
    assert not data["mix"]["quant_enable"]
    assert data["conv"]["activation_quant_params"]["num_of_bins"] == 2048
    assert not data["head"]["weight_quant_params"]["channel_wise"]
    layers = capture(net, (x,)).layers
    config = read_config(written, layers)
    assert config.to_json() == written.read_text()
    again = tmp_path / "again.cfg"
    again.write_text(format_text_config(config, layers))
    create_quant_config(str(tmp_path / "d.json"), net, (x,), config_defination=str(again))
    assert (tmp_path / "d.json").read_bytes() == written.read_bytes()


def test_a_wrong_text_leaves_no_file(net: Net, x: Tensor, tmp_path: Path) -> None:
    written, text = tmp_path / "c.json", tmp_path / "my.cfg"
    text.write_text("batch_num: 1\nbatchnum: 2")
    with pytest.raises(text_format.ParseError, match=r"my\.cfg, line 2: .*batchnum"):
        create_quant_config(str(written), net, (x,), config_defination=str(text))
    text.write_text('skip_layers: "act" override_layer_configs { layer_name: "heads" }')
    with pytest.raises(ValueError, match="heads") as caught:
        create_quant_config(str(written), net, (x,), config_defination=str(text))
    assert "'act'" in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"no\.cfg"):
        create_quant_config(str(written), net, (x,), config_defination=str(tmp_path / "no.cfg"))
    with pytest.raises(TypeError, match="config_defination"):
        create_quant_config(str(written), net, (x,), config_defination=3)  # type: ignore[arg-type]
    assert not written.exists()


def test_channel_wise_linear_from_config_to_files(net: Net, x: Tensor, tmp_path: Path) -> None:
    wanted = net(x).detach().numpy()
    power = {}
    for opted_in in (False, True):
        folder = tmp_path / str(opted_in)
        config, modified, record = (
            str(folder / name) for name in ("config.json", "modified.onnx", "record.txt")
        )
        create_quant_config(config, net, (x,), channel_wise_linear=opted_in)
        assert bool(read_sidecar(config).options.get("channel_wise_linear")) is opted_in
        calibrating = quantize_model(config, modified, record, net, (x,))
        with torch.no_grad():
            calibrating(x)
        scales = read_record(record).layers["mix"].scale_w
        largest = net.mix.weight.detach().abs().amax(1)
        assert len(scales) == (12 if opted_in else 1)
        # Section 8.1: the largest magnitude of a row over 127 levels, or 128 if it is negative.
        for scale, bound in zip(scales, largest if opted_in else [largest.max()], strict=True):
            assert float(scale) in (pytest.approx(bound / 127), pytest.approx(bound / 128))
        save_model(modified, record, str(folder / "net"))
        for kind in ("fake_quant", "qdq"):
            session = ort.InferenceSession(str(folder / f"net_{kind}_model.onnx"))
            (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            power[opted_in, kind] = float(np.square(wanted - found).sum())
    # 29 of 30 parts of the other rows' codes are lost to the loud row without the opt-in.
    for kind in ("fake_quant", "qdq"):
        assert power[True, kind] < power[False, kind] / 4


def test_channel_wise_linear_in_a_json_needs_the_opt_in(
    net: Net, x: Tensor, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    create_quant_config(str(config), net, (x,), channel_wise_linear=True)
    (tmp_path / "config.json.workbench.json").unlink()
    with pytest.raises(ValueError, match=r"channel_wise is True.*channel_wise_linear=True"):
        quantize_model(str(config), str(tmp_path / "m.onnx"), str(tmp_path / "r.txt"), net, (x,))


def test_an_entry_without_weight_settings_is_quantised(net: Net, x: Tensor, tmp_path: Path) -> None:
    """A Conv3d under a common ADA block has none, which reads as ARQ."""
    volume = nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU()).eval()
    cube = torch.randn(1, 2, 6, 6, 6)
    text = tmp_path / "my.cfg"
    text.write_text("common_config { ada_quantize { num_iteration: 0 } }")
    config, record = str(tmp_path / "c.json"), str(tmp_path / "r.txt")
    create_quant_config(config, volume, (cube,), config_defination=str(text))
    assert "weight_quant_params" not in json.loads(Path(config).read_text())["0"]
    quantize_model(config, str(tmp_path / "m.onnx"), record, volume, (cube,))
    assert len(read_record(record).layers["0"].scale_w) == 4
