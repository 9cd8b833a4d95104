"""``save_quant_retrain_model``: files, modes, bad input (chapter 30 sections 2.4 and 7)."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from qat_models import (
    Files,
    batch,
    evaluate,
    make_model,
    sgd,
    small_net,
    train_steps,
)
from torch import Tensor, nn

from workbench.engine import (
    create_quant_retrain_model,
    restore_quant_retrain_model,
    save_quant_retrain_model,
)
from workbench.engine.events import FileWritten, Notice
from workbench.engine.export import external
from workbench.engine.files.record import read_record
from workbench.engine.files.sidecar import read_sidecar, sidecar_path


def save(files: Files, model: nn.Module, **options: Any) -> None:
    save_quant_retrain_model(
        files.config, model, files.record, files.save_path, batch(0), **options
    )


def digests(files: Files) -> dict[str, str]:
    folder = Path(files.save_path).parent
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Files, nn.Module]:
    files = Files(tmp_path_factory.mktemp("saved"))
    model = make_model(files, small_net(), batch(0))
    train_steps(model, sgd(model), range(3))
    evaluate(model, batch(9))
    return files, model


@pytest.fixture(scope="module")
def saved(trained: tuple[Files, nn.Module]) -> Files:
    save(*trained)
    return trained[0]


def test_three_files_that_compute_the_same(saved: Files, trained: tuple[Files, nn.Module]) -> None:
    x = batch(9)
    eager = evaluate(trained[1], x).numpy()
    for kind, tolerance in (("fake_quant", 1e-5), ("qdq", 0.02)):
        session = ort.InferenceSession(saved.onnx(kind), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"x": x.numpy()})
        assert np.abs(found - eager).max() <= tolerance * np.abs(eager).max()
    assert Path(saved.onnx("deploy")).stat().st_mode & 0o777 == 0o640


def test_a_channel_that_training_switched_off_can_be_saved(tmp_path: Path) -> None:
    """At its weights' own scale the bias that is left has no int32 code."""
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3)
    )
    with torch.no_grad():
        net[1].weight[2], net[1].bias[2] = 1e-12, 0.3
    files, x = Files(tmp_path), batch(0)
    model = make_model(files, net, x)
    for seed in range(2):
        model.train()(batch(seed))
    eager = evaluate(model, x).numpy()
    save(files, model)
    session = ort.InferenceSession(files.onnx("fake_quant"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert np.abs(found - eager).max() <= 1e-4 * np.abs(eager).max()
    record = read_record(files.record).layers["0"]
    assert 0.29 / (record.scale_d * record.scale_w[2]) <= 2**30


def test_nodes_of_the_deploy_file(saved: Files) -> None:
    graph = onnx.load(saved.onnx("deploy")).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds == [
        *("AscendQuant", "Conv", "AscendDequant", "Relu", "AscendQuant", "Conv", "AscendDequant"),
        *("Conv", "AscendDequant", "Add", "Relu", "ReduceMean", "AscendQuant", "Gemm"),
        "AscendDequant",
    ]
    names = {node.name for node in graph.node}
    assert {"stem.quant", "body.quant", "head.quant", "stem", "side.dequant"} <= names
    assert all("op_data_type" not in str(node.attribute) for node in graph.node)


def test_saving_again_gives_the_same_bytes_and_leaves_training_alone(
    saved: Files, trained: tuple[Files, nn.Module]
) -> None:
    first, model = digests(saved), copy.deepcopy(trained[1])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    save(saved, model)
    assert digests(saved) == first
    assert model.training and model.stem.bn_module.training and model.bn.training
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    model(batch(1)).sum().backward()


def test_a_save_takes_the_model_as_it_is_now(
    trained: tuple[Files, nn.Module], tmp_path: Path
) -> None:
    model, other = copy.deepcopy(trained[1]), Files(tmp_path)
    Path(other.config).write_text(Path(trained[0].config).read_text())
    Path(other.record).write_text(Path(trained[0].record).read_text())
    before = read_record(other.record)
    train_steps(model, sgd(model), range(20, 23))
    save(other, model)
    after = read_record(other.record)
    assert all(after.layers[n].scale_w != before.layers[n].scale_w for n in after.layers)


def test_a_restored_model_saves_after_an_evaluation(
    saved: Files, trained: tuple[Files, nn.Module], tmp_path: Path
) -> None:
    other = Files(tmp_path)
    Path(other.config).write_text(Path(saved.config).read_text())
    torch.save(trained[1].state_dict(), other.checkpoint)
    restored = restore_quant_retrain_model(
        other.config, small_net(5), other.record, batch(0), other.checkpoint
    )
    with pytest.raises(RuntimeError, match="there was no inference yet"):
        save(other, restored)
    evaluate(restored, batch(9))
    save(other, restored)
    theirs, ours = digests(saved), digests(other)
    assert ours["net_deploy_model.onnx"] == theirs["net_deploy_model.onnx"]
    assert ours["net_fake_quant_model.onnx"] == theirs["net_fake_quant_model.onnx"]


def test_without_ranges_there_are_two_files(
    trained: tuple[Files, nn.Module], tmp_path: Path
) -> None:
    files, model = trained
    duplicate, events = copy.deepcopy(model), []
    duplicate.workbench_qat._recorder = type(duplicate.workbench_qat._recorder)()
    save_quant_retrain_model(
        files.config,
        duplicate,
        files.record,
        str(tmp_path / "net"),
        batch(0),
        on_event=events.append,
    )
    written = {Path(e.path).name for e in events if isinstance(e, FileWritten)}
    assert written == {"net_fake_quant_model.onnx", "net_deploy_model.onnx"}
    assert any(isinstance(e, Notice) and "run a batch in eval mode" in e.message for e in events)


def test_names_and_axes_and_the_external_data_of_large_models(
    trained: tuple[Files, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external, "LIMIT_BYTES", 64)
    monkeypatch.setattr(external, "MINIMUM_BYTES", 32)
    files, model = trained
    save_quant_retrain_model(
        files.config,
        model,
        files.record,
        f"{tmp_path}/",
        batch(0),
        input_names=["picture"],
        output_names=["scores"],
        dynamic_axes={"picture": {0: "n"}},
    )
    graph = onnx.load(tmp_path / "qdq_model.onnx").graph
    assert [value.name for value in graph.input] == ["picture"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"
    names = {p.name for p in tmp_path.iterdir()}
    assert {"stem.weight_deploy.external", "stem.weight_fakequant.external"} <= names
    session = ort.InferenceSession(tmp_path / "fake_quant_model.onnx")
    (found,) = session.run(["scores"], {"picture": batch(9).numpy()})
    assert np.abs(found - evaluate(model, batch(9)).numpy()).max() < 1e-4


class Normed(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.bn = norm

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv(x))
        return out


def normed(norm: nn.Module) -> Normed:
    torch.manual_seed(11)
    model = Normed(norm)
    model.bn.weight.data.copy_(torch.tensor([1.0, -0.5, 2.0, 0.0]))
    return model


def test_batch_norms_of_all_kinds_and_modes_give_the_same_files(tmp_path: Path) -> None:
    # Three models at a time: what one is given must not reach another.
    made: dict[str, tuple[Files, nn.Module]] = {}
    for kind, norm in (
        ("before", nn.SyncBatchNorm(4)),
        ("after", nn.BatchNorm2d(4)),
        ("plain", nn.BatchNorm2d(4)),
    ):
        files = Files(tmp_path / kind)
        files.folder.mkdir()
        made[kind] = files, make_model(files, normed(norm), batch(0))
    files, model = made["after"]
    made["after"] = files, nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(model.conv.bn_module, nn.SyncBatchNorm)
    for _, model in made.values():
        model(batch(0))
        evaluate(model, batch(1))
    found = {}
    for kind, (files, model) in made.items():
        model.train(kind == "before")
        save(files, model)
        found[kind] = digests(files)
    assert found["before"] == found["plain"]
    assert found["after"] == found["plain"]


def test_forced_half_precision_reaches_record_and_files(tmp_path: Path) -> None:
    files = Files(tmp_path)
    mode = {"fakequant_precision_mode": "FORCE_FP16_QUANT"}
    model = make_model(files, normed(nn.BatchNorm2d(4)), batch(0), **mode)
    model(batch(0))
    eager = evaluate(model, batch(1)).numpy()
    save(files, model)
    (entry,) = read_record(files.record).layers.values()
    assert entry.fakequant_precision_mode == "FORCE_FP16_QUANT"
    assert np.float32(np.float16(entry.scale_d)) == np.float32(entry.scale_d)
    graph = onnx.load(files.onnx("deploy")).graph
    words = next(t for t in graph.initializer if t.name == "conv.dequant.param")
    assert not np.any(onnx.numpy_helper.to_array(words).astype(np.uint32) & 0x1FFF)
    session = ort.InferenceSession(files.onnx("fake_quant"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": batch(1).numpy()})
    # Scales of ten bits: 2^-11 and 2^-10, relatively, and now and then the next code.
    assert np.abs(found - eager).max() < 0.02 * np.abs(eager).max()


# --- bad input --------------------------------------------------------------------------------


def test_fewer_batches_than_the_search_needs(tmp_path: Path) -> None:
    files = Files(tmp_path)
    model = make_model(files, small_net(), batch(0), batch_num=3)
    evaluate(model, batch(0))
    with pytest.raises(RuntimeError, match=r"stem \(1 of 3\)"):
        save(files, model)
    assert not Path(files.save_path).parent.exists()


def test_saving_before_an_inference(tmp_path: Path) -> None:
    files = Files(tmp_path)
    model = make_model(files, small_net(), batch(0))
    model(batch(0))
    with pytest.raises(RuntimeError, match="there was no inference yet"):
        save(files, model)


def test_a_model_that_is_not_in_training(trained: tuple[Files, nn.Module]) -> None:
    files, model = trained
    with pytest.raises(RuntimeError, match="no layer that is trained"):
        save(files, small_net())
    with pytest.raises(RuntimeError, match="only a part"):
        save(files, nn.Sequential(model))
    with pytest.raises(RuntimeError, match="DistributedDataParallel"):
        save(files, nn.DataParallel(model))


def test_a_config_that_is_not_the_models(trained: tuple[Files, nn.Module], tmp_path: Path) -> None:
    files, model = trained
    data = json.loads(Path(files.config).read_text())
    data["head"]["retrain_data_config"]["fixed_min"] = True
    other = tmp_path / "other.json"
    other.write_text(json.dumps(data))
    with pytest.raises(RuntimeError, match="created with: head"):
        save_quant_retrain_model(str(other), model, files.record, files.save_path, batch(0))


def test_missing_keys_of_the_config_are_its_defaults(
    trained: tuple[Files, nn.Module], tmp_path: Path
) -> None:
    files, model = trained
    short = tmp_path / "short.json"
    short.write_text('{"stem":{},"body":{},"side":{},"head":{}}')
    save_quant_retrain_model(str(short), model, files.record, str(tmp_path / "net"), batch(0))


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("config_file", "", ValueError),
        ("record_file", "a/", ValueError),
        ("config_file", "none.json", FileNotFoundError),
        ("save_path", "x" * 300, ValueError),
        ("save_path", 3, TypeError),
        ("model", 3, TypeError),
        ("input_names", [1], RuntimeError),
        ("dynamic_axes", {"x": {-1: "n"}}, RuntimeError),
    ],
)
def test_wrong_arguments(
    trained: tuple[Files, nn.Module], argument: str, value: Any, error: type[Exception]
) -> None:
    files, model = trained
    arguments = {
        "config_file": files.config,
        "model": model,
        "record_file": files.record,
        "save_path": files.save_path,
        "input_data": batch(0),
        argument: value,
    }
    with pytest.raises(error):
        save_quant_retrain_model(**arguments)


def test_the_record_has_its_sidecar(saved: Files) -> None:
    assert sidecar_path(saved.record).exists()
    ranges = read_sidecar(saved.record).ranges
    assert {"input:x", "stem", "body", "side", "head", "#add0"} <= set(ranges)


def test_creation_leaves_an_empty_record(tmp_path: Path, trained: tuple[Files, nn.Module]) -> None:
    record = tmp_path / "record.txt"
    record.write_text("old")
    create_quant_retrain_model(trained[0].config, small_net(), str(record), batch(0))
    assert record.read_text() == ""
