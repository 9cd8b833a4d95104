"""Combined compression (chapter 30 section 11, acceptance idea 22)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from workbench import zoo
from workbench.engine import TrainingSettings, fit
from workbench.engine.algorithms.selective_prune import is_two_of_four, selective_mask
from workbench.engine.files.record import read_record
from workbench.engine.files.selective_record import read_selective
from workbench.engine.files.sidecar import read_sidecar
from workbench.engine.flows.compress import (
    create_compressed_retrain_model,
    restore_compressed_retrain_model,
    save_compressed_retrain_model,
)
from workbench.engine.flows.qat_state import wrappers
from workbench.engine.modules.sparsity.entries import masked_layers
from workbench.zoo.training_data import TrainingDigits

DATA = "retrain_data_quant_config { ulq_quantize { } }\n"
WEIGHT = "retrain_weight_quant_config { arq_retrain { channel_wise: true } }\n"
TRAINED = "retrain_weight_quant_config { ulq_retrain { channel_wise: true } }\n"
QUANT = DATA + WEIGHT
FILTERS = (
    "prune_config { filter_pruner { balanced_l2_norm_filter_prune "
    "{ prune_ratio: %s ascend_optimized: false } } }\n"
)
SELECTIVE = "prune_config { n_out_of_m_pruner { l1_selective_prune { update_freq: 1 } } }\n"


def on_layer(name: str, text: str) -> str:
    return f'override_layer_configs {{ layer_name: "{name}"\n{text} }}\n'


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(3, 32, 3, bias=False)
        self.bn = nn.BatchNorm2d(32)
        self.c2 = nn.Conv2d(32, 8, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.c1(x)).relu()
        return self.fc(self.c2(x).relu().mean((2, 3)))


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net()


def write(tmp_path: Path, text: str) -> tuple[str, str]:
    config = tmp_path / "both.cfg"
    config.write_text(text)
    return str(config), str(tmp_path / "record.txt")


def widths(model: nn.Module) -> tuple[int, ...]:
    return tuple(model.get_submodule(name).weight.shape[0] for name in ("c1", "c2", "fc"))


def train(model: nn.Module, steps: int = 2) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        model(X)


ALL = {"c1", "c2", "fc"}


@pytest.mark.parametrize(
    ("text", "quantised", "shapes"),
    [
        (QUANT + FILTERS % 0.5, ALL, (16, 4, 5)),
        (QUANT + on_layer("c2", TRAINED) + FILTERS % 0.5, ALL, (16, 4, 5)),
        (QUANT + FILTERS % 0.5 + on_layer("c2", FILTERS % 0.25), ALL, (16, 6, 5)),
        (QUANT + FILTERS % 0.5 + on_layer("c2", TRAINED + FILTERS % 0.25), ALL, (16, 6, 5)),
        (QUANT, ALL, (32, 8, 5)),
        (QUANT + on_layer("c2", TRAINED), ALL, (32, 8, 5)),
        (FILTERS % 0.5, set(), (16, 4, 5)),
        (FILTERS % 0.5 + on_layer("c2", FILTERS % 0.25), set(), (16, 6, 5)),
        # A feature that is only in overrides is on for exactly those layers.
        (on_layer("c2", QUANT) + on_layer("c1", FILTERS % 0.25), {"c2"}, (24, 8, 5)),
        (QUANT + on_layer("fc", SELECTIVE), ALL, (32, 8, 5)),
    ],
)
def test_scenarios(
    model: Net, tmp_path: Path, text: str, quantised: set[str], shapes: tuple[int, ...]
) -> None:
    paths = write(tmp_path, text)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    created = create_compressed_retrain_model(model, (X,), *paths)
    assert set(wrappers(created)) == quantised
    assert widths(created) == shapes
    assert created.c2.weight.shape[1] == shapes[0]
    assert created.fc.weight.shape[1] == shapes[1]
    trained_scales = {
        name
        for name, wrapper in wrappers(created).items()
        if wrapper.quant_module.weight_settings("wts_").trained_scales
    }
    assert trained_scales == ({"c2"} if TRAINED in text else set())
    assert set(masked_layers(created)) == ({"fc"} if SELECTIVE in text else set())
    record = read_record(paths[1])
    assert not record.layers
    assert bool(record.prune) == ("prune_config" in text)
    assert created(X).shape == (4, 5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


BOTH = QUANT + SELECTIVE + on_layer("c1", FILTERS % 0.5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Channels of c1 removed, c2 and fc with 2:4 masks, all three quantised; trained and saved."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("both")
    paths = write(folder, BOTH)
    model = create_compressed_retrain_model(Net(), (X,), *paths)
    train(model)
    torch.save(model.state_dict(), folder / "state.pt")
    save_compressed_retrain_model(model, paths[1], str(folder / "net"), (X,))
    return {"folder": folder, "paths": paths, "model": model}


def test_the_record_has_both_parts(trained: dict[str, Any]) -> None:
    record = read_record(trained["paths"][1])
    assert list(record.layers) == ["c1", "c2", "fc"]
    assert len(record.layers["c1"].scale_w) == 16
    producers = [n for e in record.prune for n in e.producer]
    assert [(n.name, sum(len(a.ints) for a in n.attr)) for n in producers] == [("c1", 16)]
    found = read_selective(record.prune, source="r")
    layers = masked_layers(trained["model"])
    assert sorted(found) == sorted(layers) == ["c2", "fc"]
    for name, (shape, mask) in found.items():
        assert shape == tuple(mask.shape) == tuple(layers[name].wts_mask.shape)
        assert torch.equal(mask, layers[name].wts_mask)
    assert found["c2"][0] == (8, 16, 3, 3)


def test_zeros_are_integer_zeros(trained: dict[str, Any]) -> None:
    deploy = onnx.load(trained["folder"] / "net_deploy_model.onnx")
    weights = [
        numpy_helper.to_array(i)
        for i in deploy.graph.initializer
        if i.data_type == onnx.TensorProto.INT8 and len(i.dims) > 1
    ]
    assert sorted(w.ndim for w in weights) == [2, 4, 4]
    sparse = [w for w in weights if w.shape[1] == 16 or w.ndim == 2]
    assert len(sparse) == 2
    for weight in sparse:
        # Gemm may hold the weight transposed: one of the two axes is the input channels.
        values = torch.from_numpy(weight.copy())
        axes = (0, 1) if weight.ndim == 2 else (1,)
        assert any(is_two_of_four(values, axis) for axis in axes)
        assert 0.4 <= float((values != 0).float().mean()) <= 0.5


def test_the_fake_quant_file_computes_what_the_model_does(trained: dict[str, Any]) -> None:
    model = trained["model"]
    with torch.no_grad():
        wanted = model(X)
    session = onnxruntime.InferenceSession(trained["folder"] / "net_fake_quant_model.onnx")
    found = session.run(None, {session.get_inputs()[0].name: X.numpy()})[0]
    np.testing.assert_allclose(found, wanted, atol=2e-2 * float(wanted.abs().max()))
    assert (trained["folder"] / "net_qdq_model.onnx").exists()


def test_restore_replays_shapes_masks_and_factors(trained: dict[str, Any]) -> None:
    config, record = trained["paths"]
    before = Path(record).read_text()
    checkpoint = str(trained["folder"] / "state.pt")
    restored = restore_compressed_retrain_model(Net(), (X,), config, record, checkpoint).eval()
    assert Path(record).read_text() == before
    assert widths(restored) == (16, 8, 5)
    masks = masked_layers(trained["model"])
    for name, layer in masked_layers(restored).items():
        assert torch.equal(layer.wts_mask, masks[name].wts_mask)
    with torch.no_grad():
        assert torch.equal(restored(X), trained["model"](X))
    # The evaluation has written the record anew, from what was restored: nothing is lost.
    assert Path(record).read_text() == before


def test_training_goes_on_after_saving(trained: dict[str, Any], tmp_path: Path) -> None:
    config, record = trained["paths"]
    checkpoint = str(trained["folder"] / "state.pt")
    copied = tmp_path / "record.txt"
    copied.write_text(Path(record).read_text())
    model = restore_compressed_retrain_model(Net(), (X,), config, str(copied), checkpoint)
    first = {name: layer.wts_mask.clone() for name, layer in masked_layers(model).items()}
    with torch.no_grad():
        for layer in masked_layers(model).values():
            layer.replaced_module.weight.mul_(torch.where(layer.wts_mask, 0.01, 1.0))
    train(model)
    now = masked_layers(model)
    assert all(not torch.equal(first[name], layer.wts_mask) for name, layer in now.items())
    found = read_selective(read_record(copied).prune, source="r")
    assert all(torch.equal(found[name][1], layer.wts_mask) for name, layer in now.items())
    assert len([e for e in read_record(copied).prune if e.producer]) == 1
    gradient = model.fc.quant_module.replaced_module.weight.grad
    assert torch.equal(gradient[~now["fc"].wts_mask], torch.zeros(20))


def test_only_pruned_gives_two_equal_float_files(model: Net, tmp_path: Path, caplog) -> None:
    paths = write(tmp_path, FILTERS % 0.5 + on_layer("fc", SELECTIVE))
    created = create_compressed_retrain_model(model, (X,), *paths)
    train(created)
    with caplog.at_level("INFO"):
        save_compressed_retrain_model(created, paths[1], str(tmp_path / "net"), (X,), ["x"], ["y"])
    assert "the same float model" in caplog.text
    deploy, fake = (tmp_path / f"net_{k}_model.onnx" for k in ("deploy", "fake_quant"))
    assert deploy.read_bytes() == fake.read_bytes()
    found = onnxruntime.InferenceSession(deploy).run(["y"], {"x": X.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, created(X), atol=1e-6)
    mask = read_selective(read_record(paths[1]).prune, source="r")["fc"][1]
    assert torch.equal(mask, created.fc.wts_mask)


def test_channels_are_equalised_before_masks_are_chosen(model: Net, tmp_path: Path) -> None:
    paths = write(tmp_path, QUANT + SELECTIVE)
    with torch.no_grad():
        model.bn.weight[:8] *= 2**-6
        model.bn.bias[:8] *= 2**-6
    model.eval()
    plain = create_compressed_retrain_model(model, (X,), *paths, equalize=False)
    assert torch.equal(plain.c2.weight, model.c2.weight)
    even = create_compressed_retrain_model(model, (X,), *paths)
    ratio = even.c2.weight[:, :8] / model.c2.weight[:, :8]
    assert (ratio < 1).all()
    found = read_selective(read_record(paths[1]).prune, source="r")["c2"][1]
    assert torch.equal(found, selective_mask(even.c2.weight, 1))
    assert torch.equal(found, masked_layers(even)["c2"].wts_mask)


def test_options_of_the_record_outlive_an_evaluation(model: Net, tmp_path: Path) -> None:
    paths = write(tmp_path, BOTH)
    options = {"through_layer_norm": True, "channel_wise_linear": True}
    created = create_compressed_retrain_model(model, (X,), *paths, **options)
    train(created)
    assert read_sidecar(paths[1]).options == options
    assert len(read_record(paths[1]).layers["fc"].scale_w) == 5
    checkpoint = str(tmp_path / "state.pt")
    torch.save(created.state_dict(), checkpoint)
    restored = restore_compressed_retrain_model(Net(), (X,), *paths, checkpoint).eval()
    with torch.no_grad():
        assert torch.equal(restored(X), created(X))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch_num: 1", "without a setting"),
        (QUANT + "prune_config { }", "prune_config is empty"),
        (QUANT + FILTERS % 1.5, "prune_ratio is 1.5"),
        (FILTERS % 0.5 + 'quant_skip_layers: "c1"', "quant_skip_layers is c1; allowed: nothing"),
        (QUANT + 'regular_prune_skip_types: "Linear"', "regular_prune_skip_types"),
        (QUANT + FILTERS % 0.5 + 'skip_layers: "c9"', "skip_layers is 'c9'"),
        (QUANT + on_layer("c1", SELECTIVE) + 'skip_layers: "c9"', "skip_layers is 'c9'"),
        (QUANT + 'skip_layer_types: "Conv9d"', "skip_layer_types is 'Conv9d'"),
        (QUANT + 'skip_layer_types: "Conv2d" skip_layer_types: "Linear"', "of no layer"),
        (QUANT.replace("{ }", "{ dst_type: INT4 }") + FILTERS % 0.0, "(?s)prune_ratio.*dst_type"),
    ],
)
def test_configs_that_cannot_be(model: Net, tmp_path: Path, text: str, words: str) -> None:
    paths = write(tmp_path, text)
    with pytest.raises(ValueError, match=words):
        create_compressed_retrain_model(model, (X,), *paths)
    assert not Path(paths[1]).exists()


def test_a_skip_that_only_one_feature_knows(model: Net, tmp_path: Path) -> None:
    paths = write(tmp_path, QUANT + SELECTIVE + 'skip_layer_types: "Conv3d" skip_layers: "c1"')
    created = create_compressed_retrain_model(model, (X,), *paths)
    assert set(wrappers(created)) == set(masked_layers(created)) == {"c2", "fc"}


def test_order_of_calls(trained: dict[str, Any], model: Net, tmp_path: Path) -> None:
    config, record = trained["paths"]
    checkpoint = str(trained["folder"] / "state.pt")
    missing, empty = tmp_path / "none.txt", tmp_path / "empty.txt"
    with pytest.raises(FileNotFoundError, match="what was pruned"):
        restore_compressed_retrain_model(Net(), (X,), config, str(missing), checkpoint)
    other = tmp_path / "quant.cfg"
    other.write_text(QUANT)
    with pytest.raises(RuntimeError, match="the config prunes nothing"):
        restore_compressed_retrain_model(Net(), (X,), str(other), record, checkpoint)
    empty.write_text("")
    with pytest.raises(RuntimeError, match="no 2:4 entry for layer c2"):
        restore_compressed_retrain_model(Net(), (X,), config, str(empty), checkpoint)
    with pytest.raises(RuntimeError, match="nothing that was pruned"):
        save_compressed_retrain_model(model, str(empty), str(tmp_path / "net"), (X,))
    fresh = create_compressed_retrain_model(model, (X,), config, str(empty))
    with pytest.raises(RuntimeError, match="bounds"):
        save_compressed_retrain_model(fresh, str(empty), str(tmp_path / "net"), (X,))
    fresh.train()(X)
    with pytest.raises(RuntimeError, match="no inference yet"):
        save_compressed_retrain_model(fresh, str(empty), str(tmp_path / "net"), (X,))
    with pytest.raises(RuntimeError):
        create_compressed_retrain_model(fresh, (X,), config, str(tmp_path / "r.txt"))


@pytest.mark.slow
def test_the_combination_does_not_collapse(tmp_path: Path) -> None:
    example = zoo.load("digits-resnet")
    pictures, labels = example.data.evaluation[:1500], example.data.targets[:1500]

    def accuracy(text: str) -> float:
        folder = tmp_path / str(len(text))
        folder.mkdir()
        paths = write(folder, text)
        inputs = (example.data.calibration[:2],)
        created = create_compressed_retrain_model(copy.deepcopy(example.model), inputs, *paths)
        settings = TrainingSettings(epochs=1, learning_rate=2e-3)
        fit(created, TrainingDigits("digits-resnet"), loss=cross_entropy, settings=settings)
        with torch.no_grad():
            created(pictures[:128])
        save_compressed_retrain_model(created, paths[1], str(folder / "net"), inputs)
        session = onnxruntime.InferenceSession(folder / "net_fake_quant_model.onnx")
        name = session.get_inputs()[0].name
        found = [session.run(None, {name: b.numpy()})[0].argmax(1) for b in pictures.split(100)]
        return float(np.mean(np.concatenate(found) == labels.numpy()))

    alone = [accuracy(text) for text in (QUANT, FILTERS % 0.3, SELECTIVE)]
    assert min(alone) > 0.96
    for text in (QUANT + FILTERS % 0.3, QUANT + SELECTIVE):
        assert accuracy(text) > min(alone) - 0.01
