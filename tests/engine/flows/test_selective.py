"""2:4 sparsity through the pruning flow (chapter 40 sections 1 and 4)."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from workbench.engine.algorithms.selective_prune import is_two_of_four, selective_mask
from workbench.engine.files.record import read_record, write_record
from workbench.engine.files.selective_record import read_selective
from workbench.engine.flows.prune import (
    create_prune_retrain_model,
    restore_prune_retrain_model,
    save_prune_retrain_model,
)
from workbench.engine.flows.ptq import create_quant_config
from workbench.engine.flows.selective import fold_sparsity, update_prune_record
from workbench.engine.modules.sparsity.entries import masked_layers

GLOBAL = "prune_config { n_out_of_m_pruner { l1_selective_prune { update_freq: %d } } }"
CHANNELS = """override_layer_configs { layer_name: "c2" prune_config { filter_pruner {
  balanced_l2_norm_filter_prune { prune_ratio: 0.5 ascend_optimized: false } } } }"""


class Net(nn.Module):
    """Network N of chapter 40 section 10, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.c0 = nn.Conv2d(3, 8, 3, padding=1)
        self.b0 = nn.BatchNorm2d(8)
        self.c1 = nn.Conv2d(8, 8, 3, padding=1)
        self.b1 = nn.BatchNorm2d(8)
        self.c2 = nn.Conv2d(8, 10, 3, padding=1)
        self.up = nn.ConvTranspose2d(10, 4, 2)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.b0(self.c0(x)).relu()
        x = (x + self.b1(self.c1(x))).relu()
        x = self.c2(x).relu()
        return self.fc(x.mean((2, 3))), self.up(x)


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LAYERS = ["c0", "c1", "c2", "up", "fc"]


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def paths(tmp_path: Path) -> tuple[str, str]:
    config = tmp_path / "prune.cfg"
    config.write_text(GLOBAL % 2)
    return str(config), str(tmp_path / "record.txt")


def masks(record_file: str) -> dict[str, Tensor]:
    found = read_selective(read_record(record_file).prune, source=record_file)
    return {name: mask for name, (_, mask) in found.items() if mask is not None}


def train(model: nn.Module, steps: int = 3) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(part.square().mean() for part in model(X)).backward()
        optimizer.step()
    model.eval()


def test_create(model: Net, paths: tuple[str, str]) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    created = create_prune_retrain_model(model, (X,), *paths)
    assert list(masked_layers(created)) == LAYERS
    recorded = masks(paths[1])
    for name in LAYERS:
        layer = model.get_submodule(name)
        wanted = selective_mask(layer.weight, 0 if name == "up" else 1)
        assert torch.equal(recorded[name], wanted)
        assert torch.equal(masked_layers(created)[name].wts_mask, wanted)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not created.training


def test_what_it_cannot_thin_out_is_said(
    paths: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 3, 1))
    with caplog.at_level(logging.WARNING):
        created = create_prune_retrain_model(net, (torch.randn(2, 4, 5, 5),), *paths)
    assert "takes nothing from 0, 2:" in caplog.text
    densities = {name: layer.density for name, layer in masked_layers(created).items()}
    assert densities == {"0": 1.0, "1": 0.5, "2": 1.0}


def test_saving_before_a_first_forward(model: Net, paths: tuple[str, str], tmp_path: Path) -> None:
    created = create_prune_retrain_model(model, (X,), *paths)
    save_prune_retrain_model(created, str(tmp_path / "net"), (X,))
    exported = onnx.load(tmp_path / "net_deploy_model.onnx")
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in exported.graph.initializer}
    found = {name: value for name, value in weights.items() if value.ndim > 1}
    assert all(np.isfinite(value).all() for value in found.values())
    sparse = [v for v in found.values() if (v == 0).mean() > 0.3]
    assert len(sparse) == 5
    assert list(masked_layers(created)) == LAYERS


def test_train_restore_and_save(model: Net, paths: tuple[str, str], tmp_path: Path) -> None:
    created = create_prune_retrain_model(model, (X,), *paths)
    first = masks(paths[1])
    train(created)
    checkpoint = str(tmp_path / "state.pt")
    torch.save(created.state_dict(), checkpoint)
    assert any(not torch.equal(first[n], m.wts_mask) for n, m in masked_layers(created).items())

    update_prune_record(created, paths[1])
    now = masks(paths[1])
    assert all(torch.equal(now[n], m.wts_mask) for n, m in masked_layers(created).items())

    restored = restore_prune_retrain_model(Net(), (X,), paths[1], paths[0], checkpoint).eval()
    for found, wanted in zip(restored(X), created(X), strict=True):
        assert torch.equal(found, wanted)

    save_prune_retrain_model(restored, str(tmp_path / "net"), (X,))
    deploy, fake = (tmp_path / f"net_{k}_model.onnx" for k in ("deploy", "fake_quant"))
    assert deploy.read_bytes() == fake.read_bytes()
    session = onnxruntime.InferenceSession(deploy)
    found = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    for one, wanted in zip(found, created(X), strict=True):
        np.testing.assert_allclose(one, wanted.detach(), atol=1e-5)
    for name, layer in masked_layers(restored).items():
        assert is_two_of_four(layer.masked_weight(), 0 if name == "up" else 1)


def test_both_modes_in_one_config(model: Net, tmp_path: Path) -> None:
    config, record = tmp_path / "mixed.cfg", str(tmp_path / "record.txt")
    config.write_text(GLOBAL % 0 + CHANNELS)
    created = create_prune_retrain_model(model, (X,), str(config), record)
    assert masked_layers(created)["fc"].wts_mask.shape == (5, 5)
    assert sorted(masked_layers(created)) == ["c0", "c1", "fc", "up"]
    # Training does not lose the channel part, as the reference's record did.
    train(created)
    update_prune_record(created, record)
    torch.save({"net": created.state_dict()}, tmp_path / "state.pt")
    again = restore_prune_retrain_model(
        Net(), (X,), record, str(config), str(tmp_path / "state.pt"), "net"
    ).eval()
    for found, wanted in zip(again(X), created(X), strict=True):
        assert torch.equal(found, wanted)


def test_a_record_that_does_not_fit(model: Net, paths: tuple[str, str], tmp_path: Path) -> None:
    created = create_prune_retrain_model(model, (X,), *paths)
    checkpoint = str(tmp_path / "state.pt")
    torch.save(created.state_dict(), checkpoint)
    other = tmp_path / "other.cfg"
    other.write_text(GLOBAL % 0 + 'regular_prune_skip_layers: "fc"')
    with pytest.raises(RuntimeError, match="layer fc, which the config leaves dense"):
        restore_prune_retrain_model(Net(), (X,), paths[1], str(other), checkpoint)
    record = read_record(paths[1])
    write_record(paths[1], type(record)(prune=record.prune[:-1]))
    with pytest.raises(RuntimeError, match="no 2:4 entry for layer fc"):
        restore_prune_retrain_model(Net(), (X,), *reversed(paths), checkpoint)


def test_the_record_of_a_reference_before_training(
    model: Net, paths: tuple[str, str], tmp_path: Path
) -> None:
    created = create_prune_retrain_model(model, (X,), *paths)
    torch.save(created.state_dict(), tmp_path / "state.pt")
    text = Path(paths[1]).read_text()
    lines = text.splitlines()
    kept, inside = [], False
    for line in lines:
        inside = inside or 'name: "selective_mask"' in line
        if not inside:
            kept.append(line)
        if inside and line.strip() == "}":
            inside = False
            kept.append(line)
    stripped = "\n".join(kept).replace("attr {\n    }", "")
    Path(paths[1]).write_text(stripped)
    assert masks(paths[1]) == {}
    restore_prune_retrain_model(Net(), (X,), *reversed(paths), str(tmp_path / "state.pt"))


def test_a_weight_that_is_computed_stays_dense(paths: tuple[str, str]) -> None:
    computed = parametrizations.weight_norm(nn.Linear(8, 4))
    with pytest.raises(ValueError, match="0: its weight is computed"):
        create_prune_retrain_model(nn.Sequential(computed), (torch.randn(2, 8),), *paths)
    net = nn.Sequential(computed, nn.Linear(4, 4))
    created = create_prune_retrain_model(net, (torch.randn(2, 8),), *paths)
    assert list(masked_layers(created)) == ["1"]


def test_a_folded_model_is_an_ordinary_one(
    model: Net, paths: tuple[str, str], tmp_path: Path
) -> None:
    created = create_prune_retrain_model(model, (X,), *paths)
    config = str(tmp_path / "config.json")
    with pytest.raises(RuntimeError, match="fold_sparsity"):
        create_quant_config(config, created, (X,))
    plain = fold_sparsity(created)
    assert list(plain.state_dict()) == list(model.state_dict())
    for found, wanted in zip(plain(X), created(X), strict=True):
        assert torch.equal(found, wanted)
    assert plain.b0.weight is created.b0.weight
    assert not torch.equal(created.c1.weight, plain.c1.weight)
    create_quant_config(config, plain, (X,))


def test_updating_a_record(model: Net, paths: tuple[str, str]) -> None:
    with pytest.raises(RuntimeError, match="no 2:4 layers"):
        update_prune_record(model, paths[1])
    created = create_prune_retrain_model(model, (X,), *paths)
    with pytest.raises(FileNotFoundError):
        update_prune_record(created, paths[1] + ".none")


def test_creating_from_a_created_model(model: Net, paths: tuple[str, str]) -> None:
    created = create_prune_retrain_model(model, (X,), *paths)
    with pytest.raises(RuntimeError):
        create_prune_retrain_model(created, (X,), *paths)
