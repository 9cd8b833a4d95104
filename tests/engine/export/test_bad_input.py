"""What ``save_model`` refuses, and as which exception (chapter 10 sections 3.4 and 12.4)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from workbench.engine.errors import WorkbenchError
from workbench.engine.export.arithmetic import bias_codes
from workbench.engine.export.save import save_model
from workbench.engine.files.record import LayerRecord, Record, write_record


def save(case) -> None:
    save_model(case.onnx_file, case.record_file, case.save_path)


def refused(case, error: type[Exception], *words: str) -> None:
    with pytest.raises(error) as caught:
        save(case)
    assert isinstance(caught.value, WorkbenchError)
    for word in words:
        assert word in str(caught.value)
    assert not Path(case.save_path).parent.exists()


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"scale_d": None}, RuntimeError, ("scale_d", "conv")),
        ({"offset_d": None}, RuntimeError, ("offset_d", "conv")),
        ({"scale_w": (), "offset_w": ()}, RuntimeError, ("scale_w", "conv")),
        ({"offset_w": (0, 0)}, RuntimeError, ("offset_w",)),
        ({"scale_w": (0.1, 0.1), "offset_w": (0, 0)}, RuntimeError, ("scale_w", "1 or 8")),
        ({"offset_d": 128}, ValueError, ("128", "127")),
        ({"scale_d": float("inf")}, ValueError, ("scale_d",)),
        ({"scale_w": (-0.1,), "offset_w": (0,)}, ValueError, ("scale_w",)),
        ({"scale_w": (0.1,), "offset_w": (1,)}, ValueError, ("offset_w",)),
        ({"act_type": "INT12"}, RuntimeError, ("act_type", "INT12")),
        ({"wts_type": "INT16"}, RuntimeError, ("wts_type", "INT16")),
        ({"dst_type": "INT16"}, RuntimeError, ("dst_type", "INT16")),
        ({"fakequant_precision_mode": "FAST"}, RuntimeError, ("FAST",)),
        ({"tensor_balance_factor": (1.0, 1.0)}, ValueError, ("tensor_balance_factor", "3")),
        ({"tensor_balance_factor": (1.0, 1.0, 1e9)}, ValueError, ("tensor_balance_factor",)),
        ({"wts_type": "INT4"}, RuntimeError, ("INT4", "even")),
    ],
)
def test_bad_fields(make_case, fields, error, words):
    case = make_case()
    case.change("conv", **fields)
    refused(case, error, *words)


@pytest.mark.parametrize(
    ("layer", "length", "words"),
    [("up", 3, "1 or 6"), ("up", 8, "1 or 6"), ("fc", 96, "1 or 5"), ("pool", 6, "allowed: 1")],
)
def test_scales_must_be_one_or_one_per_output_channel(make_case, layer, length, words):
    """A grouped transposed convolution has dims[1] · group outputs; a pool takes one scale."""
    case = make_case()
    case.change(layer, scale_w=(0.1,) * length, offset_w=(0,) * length)
    refused(case, RuntimeError, layer, words)


@pytest.mark.parametrize(("layer", "channels"), [("conv", 3), ("up", 8), ("fc", 96)])
def test_balance_factors_must_be_one_per_input_channel(make_case, layer, channels):
    case = make_case()
    case.change(layer, tensor_balance_factor=(1.0,) * (channels + 1))
    refused(case, ValueError, layer, f"{channels} input channels")
    case.change(layer, tensor_balance_factor=(1.0,) * channels)
    save(case)


def test_balance_factor_on_a_pool(make_case):
    case = make_case()
    case.change("pool", tensor_balance_factor=(1.0,) * 6)
    refused(case, RuntimeError, "AveragePool")


def test_unknown_key_and_unquantisable_node_are_reported_together(make_case):
    case = make_case()
    entry = case.record.layers["conv"]
    write_record(case.record_file, Record({**case.record.layers, "ghost": entry, "#relu0": entry}))
    refused(case, RuntimeError, "ghost", "#relu0", "Relu")


def test_bias_overflow_names_layer_channel_and_scales(make_case, small_net):
    module = small_net()
    with torch.no_grad():
        module.conv.bias[5] = 1e9
    case = make_case(module)
    case.change("conv", scale_d=1e-6)
    with pytest.raises(RuntimeError, match="channel 5") as caught:
        save(case)
    for word in ("conv", "scale_d", "scale_w", "skip_layers"):
        assert word in str(caught.value)
    folder = Path(case.save_path).parent
    assert not folder.exists() or not list(folder.iterdir())


def test_bias_bounds_are_checked_in_float64():
    import numpy as np

    one = np.ones(1, np.float32)
    assert bias_codes(np.float32([-(2.0**31)]), 1.0, one, layer="a").tolist() == [-(2**31)]
    with pytest.raises(RuntimeError):
        bias_codes(np.float32([2.0**31]), 1.0, one, layer="a")
    with pytest.raises(RuntimeError):
        bias_codes(np.float32([np.nan]), 1.0, one, layer="a")


def test_missing_files_and_wrong_types(make_case, tmp_path):
    case = make_case()
    with pytest.raises(ValueError, match=r"nothing\.onnx"):
        save_model("nothing.onnx", case.record_file, case.save_path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt"):
        save_model(case.onnx_file, str(tmp_path / "nothing.txt"), case.save_path)
    with pytest.raises(TypeError, match="save_path"):
        save_model(case.onnx_file, case.record_file, None)
    with pytest.raises(ValueError, match="241"):
        save_model(case.onnx_file, case.record_file, str(tmp_path / ("p" * 242)))
    with pytest.raises(ValueError, match="compat"):
        save_model(case.onnx_file, case.record_file, case.save_path, compat=True)


@pytest.mark.parametrize("text", ["", "record {", 'record { key: "conv" }', "record { value {} }"])
def test_records_that_cannot_be_used(make_case, text):
    case = make_case()
    Path(case.record_file).write_text(text)
    refused(case, RuntimeError)


def test_a_broken_onnx_file(make_case):
    case = make_case()
    Path(case.onnx_file).write_bytes(b"not a model")
    refused(case, ValueError, "modified.onnx")


def test_a_record_without_quantised_layers(make_case):
    case = make_case()
    write_record(case.record_file, Record({}))
    refused(case, RuntimeError)
    write_record(case.record_file, Record({"conv": LayerRecord(scale_w=(1.0,), offset_w=(0,))}))
    refused(case, RuntimeError, "scale_d")
