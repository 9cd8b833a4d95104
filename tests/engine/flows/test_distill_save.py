"""What ``save_distill_model`` writes, held against ONNX Runtime and the student itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from distill_case import Golden, loader, pictures, plain_cnn, settled
from torch import Tensor, nn

from workbench.engine import (
    create_distill_config,
    create_distill_model,
    distill,
    save_distill_model,
)
from workbench.engine.files.record import Record, read_record
from workbench.engine.files.sidecar import read_sidecar

X = pictures(64)
EXAMPLE = (X[:2],)


def distilled(model: nn.Module, folder: Path, cfg: str = "", data: Tensor = X) -> nn.Module:
    (folder / "c.cfg").write_text(cfg)
    file = str(folder / "c.json")
    create_distill_config(file, model, (data[:2],), str(folder / "c.cfg"))
    student = create_distill_model(file, model, (data[:2],))
    distill(model, student, file, loader(data[:16]), epochs=2)
    return student


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path, Record]:
    """A student of the golden network: it, the folder it is saved in, and its record."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    student = distilled(settled(Golden(8)), folder)
    save_distill_model(
        student.train(),
        str(folder / "out" / "net"),
        EXAMPLE,
        str(folder / "record.txt"),
        ["picture"],
        ["shares"],
        {"picture": {0: "n"}},
    )
    assert student.training
    return student.eval(), folder, read_record(folder / "record.txt")


def outputs_of(file: Path, x: Tensor) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(str(file))
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]  # type: ignore[no-any-return]


def test_the_files(saved: tuple[nn.Module, Path, Record]) -> None:
    _, folder, record = saved
    names = sorted(path.name for path in (folder / "out").iterdir())
    assert names == [f"net_{kind}_model.onnx" for kind in ("deploy", "fake_quant", "qdq")]
    model = onnx.load(folder / "out" / names[1])
    assert model.graph.input[0].name == "picture"
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"
    assert model.graph.output[0].name == "shares"
    assert set(record.layers) == {"c1", "c2", "c3", "fc"}


def test_the_fake_quant_file_computes_what_the_student_does(
    saved: tuple[nn.Module, Path, Record],
) -> None:
    student, folder, record = saved
    last: list[Tensor] = []
    handle = student.get_submodule("fc").register_forward_hook(lambda m, a, o: last.append(o))
    with torch.no_grad():
        expected = student(X).numpy()
    handle.remove()
    found = outputs_of(folder / "out" / "net_fake_quant_model.onnx", X)
    # The softmax behind the last layer at most halves a step of its input.
    layer = record.layers["fc"]
    step = (layer.scale_d or 0.0) * max(layer.scale_w) * 127
    assert np.abs(found - expected).max() <= step
    assert np.abs(found - expected).mean() <= 0.01 * expected.std()


def test_the_file_with_int8_kernels_is_near(saved: tuple[nn.Module, Path, Record]) -> None:
    student, folder, _ = saved
    with torch.no_grad():
        expected = student(X).numpy()
    found = outputs_of(folder / "out" / "net_qdq_model.onnx", X)
    signal, noise = np.square(expected).mean(), np.square(found - expected).mean()
    assert 10 * np.log10(signal / noise) > 30
    ranges = read_sidecar(folder / "record.txt").ranges
    # What the first layer gives with its batch norm in it, and the sum of the residual block.
    with torch.no_grad():
        first = student.get_submodule("b1")(student.get_submodule("c1")(X[:16]))
    assert ranges["c1"].high == pytest.approx(float(first.max()))
    assert ranges["input:picture"].low == pytest.approx(float(X[:16].min()))
    assert "#add0" in ranges


def test_the_scales_have_the_batch_norms_in_them(saved: tuple[nn.Module, Path, Record]) -> None:
    student, _, record = saved
    for conv, norm in (("c1", "b1"), ("c2", "b2"), ("c3", "b3")):
        weight = student.get_parameter(f"{conv}.weight").detach().reshape(8, -1)
        divisor = torch.where(weight.amin(1).abs() > weight.amax(1).abs(), 128.0, 127.0)
        bn = student.get_submodule(norm)
        gain = bn.get_parameter("weight").abs() / torch.sqrt(bn.get_buffer("running_var") + bn.eps)
        expected = weight.abs().amax(1) / divisor * gain.detach()
        torch.testing.assert_close(torch.tensor(record.layers[conv].scale_w), expected)
        clips = (
            student.get_parameter(f"{conv}.acts_clip_max").item(),
            min(student.get_parameter(f"{conv}.acts_clip_min").item(), 0.0),
        )
        scale = (clips[0] - clips[1]) / 255
        assert record.layers[conv].scale_d == pytest.approx(scale, rel=1e-6)
        assert record.layers[conv].offset_d == round(-128 - clips[1] / scale)
        assert (record.layers[conv].act_type, record.layers[conv].wts_type) == ("INT8", "INT8")
    assert record.layers["c2"].offset_d == -128  # behind a ReLU


def test_four_bits_are_exported_as_trained(tmp_path: Path) -> None:
    """The reference forgets the type, and the file clamps to eight bits (D10).

    A channel that training switched off, whose bias has no int32 code at its scale, is saved, too.
    """
    torch.manual_seed(1)
    model = settled(plain_cnn())
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        norm.weight[0], norm.bias[0] = 1e-12, 0.3
    layer = "distill_override_layers { layer_name: '%s' %s }"
    bits = (
        "distill_data_quant_config { ulq_quantize { dst_type: INT4 } } "
        "distill_weight_quant_config { ulq_distill { dst_type: INT4 } }"
    )
    cfg = " ".join(layer % (name, bits) for name in ("5", "7"))
    student = distilled(model, tmp_path, cfg)
    save_distill_model(student, str(tmp_path / "net"), EXAMPLE, str(tmp_path / "r.txt"))
    record = read_record(tmp_path / "r.txt")
    assert (record.layers["5"].act_type, record.layers["5"].wts_type) == ("INT4", "INT4")
    found = outputs_of(tmp_path / "net_fake_quant_model.onnx", X)
    with torch.no_grad():
        expected = student(X).numpy()
    assert np.abs(found - expected).mean() <= 0.01 * expected.std()
    assert np.unique(found[:, 0]).size > 2


def test_where_the_record_goes(
    saved: tuple[nn.Module, Path, Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, _, record = saved
    before = copy.deepcopy(student.state_dict())
    monkeypatch.chdir(tmp_path)
    save_distill_model(student, "results/", EXAMPLE)
    assert read_record("amct_log/scale_offset_record.txt") == record
    assert Path("results/deploy_model.onnx").is_file()
    save_distill_model(student, "", EXAMPLE, "bare.txt")
    assert read_record("bare.txt") == record
    assert Path("fake_quant_model.onnx").is_file()
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name])


def test_half_precision_is_saved_in_float32(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = settled(plain_cnn(4)).to(torch.bfloat16)
    student = distilled(model, tmp_path, data=X.to(torch.bfloat16))
    example = (X[:2].to(torch.bfloat16),)
    save_distill_model(student, str(tmp_path / "net"), example, str(tmp_path / "r.txt"))
    found = outputs_of(tmp_path / "net_fake_quant_model.onnx", X)
    with torch.no_grad():
        expected = student(X.to(torch.bfloat16)).float().numpy()
    assert np.abs(found - expected).mean() <= 0.1 * expected.std()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model": 1}, TypeError, "model"),
        ({"save_path": 1}, TypeError, "save_path"),
        ({"save_path": "a" * 242}, ValueError, "241"),
        ({"record_file": 1}, TypeError, "record_file"),
        ({"record_file": ""}, ValueError, "record_file"),
        ({"input_names": [1]}, RuntimeError, "input_names"),
        ({"dynamic_axes": {"x": [-1]}}, RuntimeError, "dynamic_axes"),
        ({"model": nn.Sequential(nn.Conv2d(3, 3, 1))}, RuntimeError, "no quantised layer"),
    ],
)
def test_save_distill_model_refuses(
    saved: tuple[nn.Module, Path, Record],
    tmp_path: Path,
    change: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    given: dict[str, Any] = {
        "model": saved[0],
        "save_path": str(tmp_path / "net"),
        "input_data": EXAMPLE,
        "record_file": str(tmp_path / "record.txt"),
    }
    with pytest.raises(error, match=words):
        save_distill_model(**(given | change))
    assert list(tmp_path.iterdir()) == []


def test_a_student_that_was_never_calibrated(tmp_path: Path) -> None:
    model = settled(plain_cnn(4))
    create_distill_config(str(tmp_path / "c.json"), model, EXAMPLE)
    student = create_distill_model(str(tmp_path / "c.json"), model, EXAMPLE)
    with pytest.raises(RuntimeError, match="not found yet: 0, 3, 5, 7"):
        save_distill_model(student, str(tmp_path / "net"), EXAMPLE, str(tmp_path / "r.txt"))
