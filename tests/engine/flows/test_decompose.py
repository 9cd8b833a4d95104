"""``auto_decomposition`` and ``decompose_network`` on whole models (chapter 60 section 11)."""

from __future__ import annotations

import copy
import json
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from workbench.engine import (
    Cancelled,
    CancelToken,
    auto_decomposition,
    create_quant_config,
    decompose_network,
    quantize_model,
    save_model,
)
from workbench.engine.events import Progress
from workbench.engine.files.sidecar import sidecar_path


class Small(nn.Module):
    """Two convolutions that are decomposed (rank 32), three that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.body = nn.ModuleDict({"a": nn.Conv2d(64, 64, 3, padding=1, bias=False)})
        self.mix = nn.ModuleList([nn.Conv2d(64, 72, 3, stride=2, padding=1)])
        self.point = nn.Conv2d(72, 64, 1)
        self.grouped = nn.Conv2d(64, 64, 3, groups=64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body["a"](self.stem(x).relu()).relu()
        return self.grouped(self.point(self.mix[0](x).relu()))


@pytest.fixture
def model() -> Small:
    torch.manual_seed(0)
    return Small().eval()


CHANGES = {"body.a": ["body.a.0", "body.a.1"], "mix.0": ["mix.0.0", "mix.0.1"]}


def row(model: nn.Module, name: str) -> dict[str, Any]:
    return next(r for r in model.decomposition_report_ if r["name"] == name)


def low_rank(layer: nn.Conv2d, rank: int) -> nn.Conv2d:
    """Give ``layer`` a kernel that is a sum of ``rank`` vertical-times-horizontal products."""
    outputs, inputs, height, width = layer.weight.shape
    first, last = torch.randn(rank, inputs, height), torch.randn(outputs, rank, width)
    if (outputs < inputs) == (height <= width):
        # In these modes the first layer is horizontal; the kernel's rank is that of the unfolding.
        first, last = torch.randn(rank, inputs, width), torch.randn(outputs, rank, height)
        kernel = torch.einsum("riw,orh->oihw", first, last)
    else:
        kernel = torch.einsum("rih,orw->oihw", first, last)
    layer.weight.data = kernel / kernel.norm()
    return layer


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    ("shape", "stride"),
    [
        ((64, 66, 3, 5), (1, 1)),
        ((64, 66, 5, 3), (2, 1)),
        ((66, 64, 3, 5), (2, 2)),
        ((66, 64, 5, 3), (1, 2)),
    ],
)
def test_a_kernel_of_low_rank_is_replaced_exactly(padding_mode, shape, stride) -> None:
    torch.manual_seed(0)
    outputs, inputs, *kernel = shape
    layer = nn.Conv2d(
        inputs, outputs, tuple(kernel), stride, padding=(1, 2), padding_mode=padding_mode
    )
    net = nn.Sequential(low_rank(layer, 20))
    x = torch.randn(2, inputs, 9, 10)
    with torch.no_grad():
        wanted = net(x)
        auto_decomposition(net)
        found = net(x)
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    first, last = net[0]
    vertical, horizontal = (first, last) if first.kernel_size[1] == 1 else (last, first)
    assert first.bias is None
    assert torch.equal(last.bias, layer.bias)
    assert (vertical.kernel_size, vertical.stride, vertical.padding) == (
        (kernel[0], 1),
        (stride[0], 1),
        (1, 0),
    )
    assert (horizontal.kernel_size, horizontal.stride, horizontal.padding) == (
        (1, kernel[1]),
        (1, stride[1]),
        (0, 2),
    )
    assert first.padding_mode == last.padding_mode == padding_mode


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_word(padding: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(low_rank(nn.Conv2d(64, 64, (4, 3), padding=padding), 20))
    x = torch.randn(1, 64, 9, 8)
    wanted = net(x)
    auto_decomposition(net)
    torch.testing.assert_close(net(x), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(64, 64, 3, dilation=(1, 2)), "dilation"),
        (nn.Conv2d(128, 128, 3, groups=2), "grouped"),
        (nn.Conv2d(128, 128, (3, 1)), "below 3"),
        (nn.Conv2d(64, 64, 3, stride=(1, 3)), "stride"),
        (nn.Conv2d(63, 64, 5), "too few channels"),
        (nn.Conv2d(64, 63, 3), "too few channels"),
        (nn.Conv2d(2, 8, 7), "too few channels"),
        (nn.Conv2d(64, 64, 5), None),
        (nn.Conv2d(3, 64, 7, stride=2), None),
    ],
)
def test_filter(layer: nn.Conv2d, reason: str | None) -> None:
    net = nn.Sequential(layer)
    _, changes = auto_decomposition(net)
    said = net.decomposition_report_[0]["skipped"]
    assert (changes == {}) == (reason is not None)
    assert said is None if reason is None else reason in said


def test_what_gains_nothing_is_left_alone_unless_compat() -> None:
    for layer in (nn.Conv2d(3, 16, 7, stride=2), nn.Conv2d(2, 8, 8)):
        net = nn.Sequential(copy.deepcopy(layer))
        assert auto_decomposition(net)[1] == {}
        assert "multiply-accumulates" in net.decomposition_report_[0]["skipped"]
        net = nn.Sequential(copy.deepcopy(layer))
        assert auto_decomposition(net, compat=True)[1] == {"0": ["0.0", "0.1"]}


def test_report_against_counting_in_a_forward(model: Small) -> None:
    def count(net: nn.Module, prefix: str) -> int:
        total = 0

        def add(module: nn.Conv2d, _: Any, out: Tensor) -> None:
            nonlocal total
            total += out.numel() * module.weight[0].numel()

        layers = [m for n, m in net.named_modules() if n.startswith(prefix)]
        handles = [m.register_forward_hook(add) for m in layers if isinstance(m, nn.Conv2d)]
        net(torch.randn(1, 3, 64, 64))
        for handle in handles:
            handle.remove()
        return total

    before = {name: count(model, name) for name in CHANGES}
    parameters = sum(p.numel() for p in model.parameters())
    auto_decomposition(model)
    for name, macs in before.items():
        said = row(model, name)
        assert count(model, name) / macs == pytest.approx(
            said["macs_after"] / said["macs"], rel=0.01
        )
    saved = sum(r["parameters"] - r["parameters_after"] for r in model.decomposition_report_)
    assert sum(p.numel() for p in model.parameters()) == parameters - saved
    assert [r["name"] for r in model.decomposition_report_] == [
        "stem", "body.a", "mix.0", "point", "grouped",
    ]  # fmt: skip


def test_offline_round_trip(model: Small, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 12, 12)
    path = tmp_path / "deep" / "info.json"
    result, changes = auto_decomposition(model, path)
    assert result is model
    assert changes == CHANGES
    entry = json.loads(path.read_text())[0]
    assert entry == {
        "ori_layer_info": {
            "name": "body.a", "in_channels": 64, "out_channels": 64, "kernel_size": [3, 3],
            "stride": [1, 1], "dilation": [1, 1], "groups": 1,
        },
        "mode": "SCFK",
        "decom_nodes": {
            "first": {"weight_shape": [32, 64, 3, 1]}, "last": {"weight_shape": [64, 32, 1, 3]},
        },
    }  # fmt: skip
    assert path.read_text().startswith("[\n\t{\n\t\t")

    fresh = Small()
    assert decompose_network(fresh, str(path)) == (fresh, CHANGES)
    assert fresh.body["a"][0].weight.abs().sum() > 0
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(x), model(x))

    # A file of another tool has no sidecar, and may hold keys that we do not know.
    data = json.loads(path.read_text())
    data[0]["more"] = 1
    foreign = tmp_path / "foreign.json"
    foreign.write_text(json.dumps(data))
    assert decompose_network(Small(), foreign)[1] == CHANGES


def spoil(data: Any, keys: list[Any], value: Any) -> None:
    for key in keys[:-1]:
        data = data[key]
    if value is KeyError:
        del data[keys[-1]]
    else:
        data[keys[-1]] = value


ORIGINAL = [0, "ori_layer_info"]


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        ([*ORIGINAL, "in_channels"], 65, "in_channels"),
        ([*ORIGINAL, "out_channels"], 72, "out_channels"),
        ([*ORIGINAL, "kernel_size"], [3, 5], "kernel_size"),
        ([*ORIGINAL, "stride"], [2, 1], "stride"),
        ([*ORIGINAL, "dilation"], [1, 2], "dilation"),
        ([*ORIGINAL, "groups"], 2, "groups"),
        ([*ORIGINAL, "name"], "body.b", "a module of the model"),
        ([*ORIGINAL, "name"], "mix", "Conv2d"),
        ([*ORIGINAL, "name"], "mix.0", "once"),
        ([*ORIGINAL, "stride"], KeyError, "stride is missing"),
        ([0, "mode"], "FCSK", "SCFK, for"),
        ([0, "mode"], "UNCHANGE", "FCFK, FCSK, SCFK, SCSK"),
        ([0, "decom_nodes", "last", "weight_shape"], [64, 31, 1, 3], "32 channels in between"),
        ([0, "decom_nodes", "first", "weight_shape"], [0, 64, 3, 1], ">= 1"),
        ([0, "decom_nodes"], KeyError, "decom_nodes is missing"),
    ],
)
def test_a_file_that_does_not_fit(model: Small, tmp_path: Path, keys, value, words) -> None:
    path = tmp_path / "info.json"
    auto_decomposition(model, path)
    data = json.loads(path.read_text())
    spoil(data, keys, value)
    path.write_text(json.dumps(data))
    sidecar_path(path).unlink()
    fresh = Small()
    before = [name for name, _ in fresh.named_modules()]
    with pytest.raises(ValueError, match=words):
        decompose_network(fresh, path)
    assert [name for name, _ in fresh.named_modules()] == before


def test_all_problems_of_a_file_are_said_at_once(model: Small, tmp_path: Path) -> None:
    path = tmp_path / "info.json"
    auto_decomposition(model, path)
    fresh = Small()
    fresh.body["a"] = nn.Conv2d(64, 64, 3, padding=2)
    fresh.mix[0] = nn.Conv2d(64, 72, 3, padding=1)
    with pytest.raises(ValueError) as raised:
        decompose_network(fresh, path)
    for words in ("padding is (1, 1)", "has_bias is False", "stride is (2, 2)"):
        assert words in str(raised.value)


def test_files_that_cannot_be_read_or_written(model: Small, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        decompose_network(model, tmp_path / "none.json")
    with pytest.raises(OSError, match="folder"):
        decompose_network(model, tmp_path)
    broken = tmp_path / "broken.json"
    broken.write_text("[{")
    with pytest.raises(json.JSONDecodeError, match="broken.json"):
        decompose_network(model, broken)
    broken.write_text('{"a": 1}')
    with pytest.raises(TypeError, match="a list"):
        decompose_network(model, broken)
    with pytest.raises(OSError, match="is a file"):
        auto_decomposition(model, broken / "info.json")
    assert isinstance(model.body["a"], nn.Conv2d)


def test_wrong_arguments(model: Small) -> None:
    for call, words in (
        (lambda: auto_decomposition("model"), "model must be Module, it is str"),
        (lambda: auto_decomposition(model, 3), "decompose_info_path must be str"),
        (lambda: decompose_network(model, None), "decompose_info_path must be str"),
        (lambda: auto_decomposition(model, rank_rule=2.5), "must be int, it is float"),
        (lambda: auto_decomposition(model, include="body*"), "include must be list"),
    ):
        with pytest.raises(TypeError, match=words):
            call()
    for options, words in (
        ({"rank_rule": "best"}, "scale_free"),
        ({"rank_rule": 193}, "rank of layer body.a is 193; allowed: 1 to 192"),
        ({"rank_rule": {"stem": 16, "boddy": 16}}, "stem cannot be decomposed"),
        ({"rank_rule": 16, "compat": True}, "compat"),
        ({"energy": 0.0, "method": "qr"}, "energy is 0.0.*method is 'qr'"),
        ({"max_error": float("nan")}, "max_error"),
        ({"min_gain": 1.0}, "min_gain"),
        ({"include": ["head*"]}, "fits no Conv2d"),
    ):
        with pytest.raises(ValueError, match=words):
            auto_decomposition(model, **options)
    assert isinstance(model.body["a"], nn.Conv2d)


@pytest.mark.parametrize("layer", ["body.a", "point"])
def test_nan_in_a_weight(model: Small, tmp_path: Path, layer: str) -> None:
    # Also in a layer that the filter leaves alone.
    model.get_submodule(layer).weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=layer):
        auto_decomposition(model, tmp_path / "info.json")
    assert isinstance(model.body["a"], nn.Conv2d)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_decompose(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    with caplog.at_level(logging.WARNING):
        assert auto_decomposition(net, tmp_path / "info.json") == (net, {})
    assert list(tmp_path.iterdir()) == []
    assert "nothing was decomposed: it has too few channels" in caplog.text


def test_a_bare_convolution_is_not_touched(tmp_path: Path) -> None:
    layer = nn.Conv2d(64, 64, 3)
    before = layer.weight.detach().clone()
    pair, changes = auto_decomposition(layer, tmp_path / "info.json")
    assert changes == {"": ["0", "1"]}
    assert isinstance(pair, nn.Sequential)
    assert torch.equal(layer.weight, before)
    assert list(pair.state_dict()) == ["0.weight", "1.weight", "1.bias"]
    again, changes = decompose_network(nn.Conv2d(64, 64, 3), tmp_path / "info.json")
    assert changes == {"": ["0", "1"]}
    again.load_state_dict(pair.state_dict())


def test_names_that_are_numbers_out_of_order() -> None:
    net = nn.Sequential(OrderedDict([("1", nn.Conv2d(64, 64, 3)), ("3", nn.ReLU())]))
    _, changes = auto_decomposition(net)
    assert changes == {"1": ["1.0", "1.1"]}
    assert [type(m) for m in net] == [nn.Sequential, nn.ReLU]
    table = nn.ModuleDict({"0": nn.Conv2d(64, 64, 3)})
    assert auto_decomposition(table)[1] == {"0": ["0.0", "0.1"]}


def test_one_module_under_two_names(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(64, 64, 3)
            self.b = self.a

    net = Twice()
    _, changes = auto_decomposition(net, tmp_path / "info.json")
    assert changes == {"a": ["a.0", "a.1"]}
    assert net.a is net.b
    other = Twice()
    assert decompose_network(other, tmp_path / "info.json")[1] == changes
    assert other.a is other.b


def test_a_weight_that_is_shared(caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3, stride=2))
    net[1].weight, net[1].bias = net[0].weight, net[0].bias
    auto_decomposition(net)
    assert net[0][0].weight is net[1][0].weight
    assert net[0][1].weight is net[1][1].weight
    assert net[0][1].bias is net[1][1].bias
    assert net[1][0].stride == (2, 1)
    # Shared with something that stays: taking one apart would break the tie.
    net = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3, dilation=2))
    net[1].weight = net[0].weight
    with caplog.at_level(logging.WARNING):
        assert auto_decomposition(net)[1] == {}
    assert "shared with 1" in caplog.text


class Doubling(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Named(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (Doubling(64, 64, 3), "Doubling computes something else"),
        (parametrizations.weight_norm(nn.Conv2d(64, 64, 3)), "its weight is computed"),
        (nn.LazyConv2d(64, 3), "not initialised"),
        (nn.Conv2d(64, 64, 3, device="meta"), "meta"),
        (nn.Conv2d(64, 64, 3, dtype=torch.complex64), "complex64"),
    ],
)
def test_layers_that_cannot_be_taken_apart(layer, words, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        assert auto_decomposition(nn.Sequential(layer))[1] == {}
    assert words in caplog.text


def test_a_subclass_that_computes_the_same() -> None:
    assert auto_decomposition(nn.Sequential(Named(64, 64, 3)))[1] == {"0": ["0.0", "0.1"]}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_state_of_the_old_layer_is_kept(dtype, caplog, tmp_path) -> None:
    def build() -> nn.Module:
        net = nn.Sequential(nn.Conv2d(64, 64, 3, dtype=dtype)).eval()
        net.to(memory_format=torch.channels_last)
        net[0].weight.requires_grad_(False)
        return net

    net = build()
    net[0].register_forward_hook(lambda *_: None)
    with caplog.at_level(logging.WARNING):
        auto_decomposition(net, tmp_path / "info.json")
    assert "had hooks" in caplog.text
    other = build()
    decompose_network(other, tmp_path / "info.json")
    for first, last in (net[0], other[0]):
        assert first.weight.dtype == last.bias.dtype == dtype
        assert not first.training
        assert not first.weight.requires_grad
        assert not last.weight.requires_grad
        assert last.bias.requires_grad
        assert last.weight.is_contiguous(memory_format=torch.channels_last)


def test_options(model: Small, tmp_path: Path) -> None:
    wanted = copy.deepcopy(model)
    auto_decomposition(wanted, rank_rule={"mix.0": 48}, include=["m*", "body.?"], exclude=["b*"])
    assert row(wanted, "mix.0")["rank"] == 48
    assert row(wanted, "body.a")["skipped"] == "it is in exclude"
    assert row(wanted, "stem")["skipped"] == "it is not in include"

    dry = copy.deepcopy(model)
    state = {k: v.clone() for k, v in dry.state_dict().items()}
    assert auto_decomposition(dry, tmp_path / "info.json", dry_run=True)[1] == {}
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(v, state[k]) for k, v in dry.state_dict().items())
    real = copy.deepcopy(model)
    auto_decomposition(real)
    for name in CHANGES:
        said, was = row(dry, name), row(real, name)
        assert said["relative_error"] == pytest.approx(was["relative_error"], rel=1e-9)
        assert {k: said[k] for k in ("rank", "mode", "skipped")} == {
            k: was[k] for k in ("rank", "mode", "skipped")
        }

    picky = copy.deepcopy(model)
    limit = (row(real, "body.a")["relative_error"] + row(real, "mix.0")["relative_error"]) / 2
    auto_decomposition(picky, max_error=limit)
    kept = {r["name"] for r in picky.decomposition_report_ if "max_error" in (r["skipped"] or "")}
    assert kept == {n for n in CHANGES if row(real, n)["relative_error"] > limit}
    assert len(kept) == 1

    keen = copy.deepcopy(model)
    auto_decomposition(keen, rank_rule="energy", energy=0.5)
    assert row(keen, "body.a")["relative_error"] ** 2 <= 0.5
    assert row(keen, "body.a")["rank"] > row(real, "body.a")["rank"]

    sketched = copy.deepcopy(model)
    auto_decomposition(sketched, method="randomised")
    assert row(sketched, "body.a")["rank"] == row(real, "body.a")["rank"] == 32
    best = row(real, "body.a")["relative_error"]
    assert best < row(sketched, "body.a")["relative_error"] < 1.03 * best
    # A rule that needs the spectrum gets it, whatever the method.
    spectral = copy.deepcopy(model)
    auto_decomposition(spectral, method="randomised", rank_rule="energy", energy=0.5)
    assert row(spectral, "body.a") | {"seconds": 0} == row(keen, "body.a") | {"seconds": 0}

    assert auto_decomposition(model, min_gain=0.9)[1] == {}


def test_scale_free_ranks() -> None:
    # 90 strong directions of 480: between the two ranks that 160 channels can have.
    torch.manual_seed(0)
    strong = low_rank(nn.Conv2d(160, 160, 3), 76).weight.data
    noise = torch.randn_like(strong)
    weight = strong + 0.02 * noise / noise.norm()
    ranks = {}
    for rule in ("scale_free", "compat"):
        for scale in (1000.0, 1.0, 0.001):
            net = nn.Sequential(nn.Conv2d(160, 160, 3))
            net[0].weight.data = weight * scale
            auto_decomposition(net, rank_rule=rule)
            ranks[rule, scale] = row(net, "0")["EV"]
    assert len({ranks["scale_free", s] for s in (1000.0, 1.0, 0.001)}) == 1
    assert ranks["scale_free", 1.0] == ranks["compat", 1000.0] == 76
    assert ranks["compat", 0.001] != 76


def test_progress_and_cancel(model: Small, tmp_path: Path) -> None:
    events: list[Progress] = []
    auto_decomposition(copy.deepcopy(model), on_event=events.append)
    assert events[0].done == 0
    assert events[-1].done == events[-1].total
    assert [e.done for e in events] == sorted(e.done for e in events)

    token = CancelToken()
    with pytest.raises(Cancelled):
        auto_decomposition(
            model, tmp_path / "info.json", on_event=lambda _: token.cancel(), cancel=token
        )
    assert isinstance(model.body["a"], nn.Conv2d)
    assert list(tmp_path.iterdir()) == []


def test_decompose_train_quantise_and_run_in_onnx_runtime(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 4, 6)
    )
    x = torch.randn(32, 3, 10, 10)
    with torch.no_grad():
        wanted = net(x)
    auto_decomposition(net)

    def loss() -> Tensor:
        return nn.functional.mse_loss(net(x), wanted)

    start = float(loss().detach())
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(20):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert float(loss().detach()) < 0.9 * start

    config, modified, record, prefix = (str(tmp_path / n) for n in ("c.json", "m.onnx", "r", "net"))
    create_quant_config(config, net, (x[:2],))
    quantize_model(config, modified, record, net, (x[:2],))(x)
    save_model(modified, record, prefix)
    session = onnxruntime.InferenceSession(f"{prefix}_fake_quant_model.onnx")
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        exact = net(x)
    noise = (torch.from_numpy(found) - exact).square().sum() / exact.square().sum()
    assert 0 < float(noise) < 0.01
    deploy = onnx.load(f"{prefix}_deploy_model.onnx")
    integers = {i.name: i for i in deploy.graph.initializer if i.data_type == onnx.TensorProto.INT8}
    assert sorted(tuple(i.dims) for i in integers.values())[-2:] == [(64, 3, 3, 3), (64, 32, 1, 3)]
