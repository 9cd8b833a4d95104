from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import channel_models
import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.engine import (
    create_prune_retrain_model,
    create_quant_config,
    quantize_model,
    restore_prune_retrain_model,
    save_model,
    save_prune_retrain_model,
)
from workbench.engine.events import Cancelled, CancelToken
from workbench.engine.files.prune_config import ChannelPrune, PruneConfig
from workbench.engine.files.record import (
    Attr,
    PruneNode,
    PruneRecord,
    Record,
    read_record,
    write_record,
)
from workbench.engine.flows.prune import preview_pruning
from workbench.engine.graph.capture import capture

FILTER = "prune_config {{ filter_pruner {{ balanced_l2_norm_filter_prune {{ {} }} }} }}\n"
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def setting(ratio: float, *, aligned: bool = False) -> str:
    return FILTER.format(f"prune_ratio: {ratio} ascend_optimized: {str(aligned).lower()}")


def override(layer: str, ratio: float) -> str:
    return f'override_layer_configs {{ layer_name: "{layer}" {setting(ratio)} }}\n'


class Flow:
    """A model, and files in a folder of its own."""

    def __init__(self, folder: Path, model: nn.Module) -> None:
        self.folder, self.model = folder, channel_models.unsettle(model)
        self.cfg, self.record = str(folder / "p.cfg"), str(folder / "p.record.txt")

    def create(self, text: str, data: Tensor = IMAGES, **options: Any) -> nn.Module:
        Path(self.cfg).write_text(text)
        return create_prune_retrain_model(self.model, (data,), self.cfg, self.record, **options)

    def restore(self, trained: nn.Module, data: Tensor = IMAGES, **options: Any) -> nn.Module:
        checkpoint = str(self.folder / "c.pth")
        torch.save(trained.state_dict(), checkpoint)
        return restore_prune_retrain_model(
            self.model, (data,), self.record, self.cfg, checkpoint, **options
        )


@pytest.fixture
def net(tmp_path: Path) -> Flow:
    torch.manual_seed(0)
    return Flow(tmp_path, channel_models.Reference())


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        name.removesuffix(".weight"): tuple(p.shape)
        for name, p in model.named_parameters()
        if name.endswith(".weight")
    }


def gone(node: PruneNode) -> tuple[int, ...]:
    return next((a.ints for a in node.attr if a.name == "prune_index"), ())


def value(node: PruneNode, name: str) -> int | None:
    return next((a.i for a in node.attr if a.name == name), None)


def test_half_of_the_reference_network(net: Flow) -> None:
    before = {k: v.clone() for k, v in net.model.state_dict().items()}
    pruned = net.create(setting(0.5))
    made = shapes(pruned)
    assert made["c0"] == (4, 3, 3, 3) and made["c1"] == (4, 4, 3, 3)
    assert made["c2"] == (5, 4, 3, 3) and made["fc"] == (5, 5)
    assert pruned.b0.num_features == pruned.b1.num_features == 4
    assert all(torch.equal(v, before[k]) for k, v in net.model.state_dict().items())
    assert not pruned.training

    first, second = read_record(net.record).prune
    assert [n.name for n in first.producer] == ["c0", "c1"]
    assert [n.name for n in first.consumer] == ["b0", "c1", "b1", "c2"]
    assert [n.name for n in (*second.producer, *second.consumer)] == ["c2", "fc"]
    assert {gone(n) for n in (*first.producer, *first.consumer)} == {gone(first.producer[0])}
    assert [a.name for a in first.producer[0].attr] == ["type", "begin", "end", "prune_index"]
    assert [n.attr[0].s for n in first.consumer] == [
        b"BatchNormalization", b"Conv", b"BatchNormalization", b"Conv",
    ]  # fmt: skip
    # The oracle, by hand: the dense network with zeros where channels are gone.
    zeroed = channel_models.Reference().eval()
    zeroed.load_state_dict(before)
    for layer, record in ((zeroed.c1, first), (zeroed.c2, first), (zeroed.fc, second)):
        layer.weight.data[:, list(gone(record.producer[0]))] = 0
    assert torch.allclose(pruned(IMAGES), zeroed(IMAGES), atol=1e-6)


def test_trainable_and_apart_from_the_original(net: Flow) -> None:
    net.model.train()
    pruned = net.create(setting(0.5))
    assert pruned.training
    shared = {p.data_ptr() for p in net.model.parameters()}
    assert not shared & {p.data_ptr() for p in pruned.parameters()}
    pruned(IMAGES).sum().backward()
    assert all(p.grad is not None for p in pruned.parameters())
    assert all(p.grad is None for p in net.model.parameters())


def test_alignment_keeps_small_layers_and_says_so(
    net: Flow, caplog: pytest.LogCaptureFixture
) -> None:
    pruned = net.create(setting(0.5, aligned=True))
    assert shapes(pruned) == shapes(net.model)
    records = read_record(net.record).prune
    assert len(records) == 2
    assert not any(gone(n) for r in records for n in (*r.producer, *r.consumer))
    assert "No channel is removed" in caplog.text and "alignment" in caplog.text
    assert torch.equal(pruned(IMAGES), net.model(IMAGES))


def test_minimum_of_the_group_and_skips(net: Flow) -> None:
    assert shapes(net.create(setting(0.5) + override("c1", 0.25)))["c0"][0] == 6
    skipped = net.create(setting(0.5) + 'regular_prune_skip_layers: "c1"')
    assert shapes(skipped)["c0"][0] == 8 and shapes(skipped)["c2"][0] == 5
    assert "c1, which is switched off" in skipped.workbench_prune.reasons["c0"]
    both = setting(0.5) + override("c2", 0.9) + 'regular_prune_skip_layers: "c2"'
    assert shapes(net.create(both))["c2"] == (10, 4, 3, 3)


def test_one_channel_always_stays(net: Flow) -> None:
    made = shapes(net.create(setting(0.999)))
    assert made["c0"][0] == 1 and made["c2"][0] == 1


def test_the_weakest_filters_of_both_producers_go(net: Flow) -> None:
    """BalancedL2Norm against the formula, and the reference's first producer with compat."""
    for compat in (False, True):
        record = net.create(setting(0.5), compat=compat) and read_record(net.record).prune[0]
        norms = [
            np.linalg.norm(layer.weight.detach().numpy().reshape(8, -1), axis=1) / count
            for layer, count in ((net.model.c0, 27), (net.model.c1, 72))
        ]
        balanced = [(n - n.min()) / (n.max() - n.min()) for n in norms]
        score = balanced[0] if compat else balanced[0] + balanced[1]
        expected = tuple(sorted(np.argsort(score, kind="stable")[:4].tolist()))
        assert gone(record.producer[0]) == expected


class Joined(nn.Module):
    """A concatenation whose first branch may be skipped (D-2)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
        self.c = nn.Conv2d(10, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x), self.b(x)], 1).relu())


def test_a_concatenation_keeps_its_true_offsets(tmp_path: Path) -> None:
    flow = Flow(tmp_path, Joined())
    pruned = flow.create(setting(0.5) + 'regular_prune_skip_layers: "a"')
    (record,) = read_record(flow.record).prune
    reader = next(n for n in record.consumer if n.name == "c")
    assert (value(reader, "begin"), value(reader, "end")) == (4, 10)
    assert gone(reader) == tuple(4 + i for i in gone(record.producer[0])) and gone(reader)
    flow.model.c.weight.data[:, list(gone(reader))] = 0
    assert torch.allclose(pruned(IMAGES), flow.model(IMAGES), atol=1e-6)


def test_a_record_with_wrong_offsets_is_followed_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The reference counts a consumer's range from 0: its checkpoint's weights are cut so."""
    flow = Flow(tmp_path, Joined())
    trained = flow.create(setting(0.5) + 'regular_prune_skip_layers: "a"')
    (record,) = read_record(flow.record).prune
    wrong = tuple(i - 4 for i in gone(record.consumer[0]))
    node = PruneNode(
        "c", (Attr("type", "STRING", s=b"Conv"), Attr("prune_index", "INTS", ints=wrong))
    )
    extra = PruneNode("/Concat_3", node.attr)
    write_record(flow.record, Record(prune=(PruneRecord(record.producer, (extra, node)),)))
    kept = [i for i in range(10) if i not in wrong]
    trained.c.weight.data = flow.model.c.weight.detach()[:, kept].clone()
    restored = flow.restore(trained)
    assert "c that are not those of its producers" in caplog.text
    assert torch.equal(restored(IMAGES), trained(IMAGES))


class Depthwise(nn.Module):
    def __init__(self, multiplier: int) -> None:
        super().__init__()
        wide = 8 * multiplier
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.dw = nn.Conv2d(8, wide, 3, padding=1, groups=8)
        self.b = nn.Conv2d(wide, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.dw(self.a(x)).relu())


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_kernels_follow_their_input(tmp_path: Path, multiplier: int) -> None:
    flow = Flow(tmp_path, Depthwise(multiplier))
    pruned = flow.create(setting(0.5))
    assert pruned.dw.weight.shape == (4 * multiplier, 1, 3, 3)
    assert (pruned.dw.groups, pruned.dw.in_channels) == (4, 4)
    assert pruned.dw.out_channels == 4 * multiplier
    lost = gone(read_record(flow.record).prune[0].producer[0])
    flow.model.b.weight.data[:, [multiplier * i + k for i in lost for k in range(multiplier)]] = 0
    assert torch.allclose(pruned(IMAGES), flow.model(IMAGES), atol=1e-6)


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.c = nn.Conv2d(12, 6, 3, padding=1, groups=2)
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.c(self.b(self.a(x)).relu()).relu())


def test_groups_lose_the_same_number_each(tmp_path: Path) -> None:
    flow = Flow(tmp_path, Grouped())
    made = flow.create(setting(0.5))
    assert [made.a.out_channels, made.b.out_channels, made.c.out_channels] == [4, 6, 2]
    records = read_record(flow.record).prune
    for record, width in zip(records, (8, 12, 6), strict=True):
        lost = np.array(gone(record.producer[0]))
        assert (lost < width // 2).sum() == (lost >= width // 2).sum()
        assert value(record.producer[0], "prune_group") == 2
    assert [value(r.producer[0], "group") for r in records] == [None, 2, 2]


class TwoGroupings(nn.Module):
    """Kernels of two and of three groups meet in an addition (D-24)."""

    def __init__(self) -> None:
        super().__init__()
        self.two = nn.Conv2d(3, 12, 1)
        self.a, self.b = nn.Conv2d(12, 12, 1, groups=2), nn.Conv2d(12, 12, 1, groups=3)
        self.out = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(x)
        return self.out((self.a(x) + self.b(x)).relu())


@pytest.mark.parametrize("seed", range(4))
def test_two_groupings_in_one_addition(tmp_path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    flow = Flow(tmp_path, TwoGroupings())
    pruned = flow.create(setting(0.5))
    record = next(r for r in read_record(flow.record).prune if r.producer[0].name == "a")
    lost = gone(record.producer[0])
    assert len(lost) == 6
    flow.model.out.weight.data[:, list(lost)] = 0
    first = gone(read_record(flow.record).prune[0].producer[0])
    for layer, width in ((flow.model.a, 6), (flow.model.b, 4)):
        for channel in first:
            part, column = divmod(channel, width)
            layer.weight.data[part * width : (part + 1) * width, column] = 0
    assert torch.allclose(pruned(IMAGES), flow.model(IMAGES), atol=1e-6)


def test_heads_of_attention(tmp_path: Path) -> None:
    torch.manual_seed(0)
    flow = Flow(tmp_path, channel_models.ViT())
    pruned = flow.create(setting(0.5))
    assert pruned.attention.num_heads == 2
    assert pruned.attention.qkv.weight.shape == (24, 16)
    assert pruned.attention.bias.shape == (9, 2)
    assert pruned.mlp[0].out_features == 12
    restored = flow.restore(pruned)
    assert restored.attention.num_heads == 2
    assert torch.equal(restored(IMAGES), pruned(IMAGES))


def test_width_of_a_transformer_on_request(tmp_path: Path) -> None:
    flow = Flow(tmp_path, channel_models.GQABlock())
    ids = torch.randint(0, 11, (2, 6))
    pruned = flow.create(setting(0.5), ids, through_layer_norm=True)
    assert pruned.embed.weight.shape == (11, 16) and pruned.norm.normalized_shape == (16,)
    assert torch.equal(flow.restore(pruned, ids)(ids), pruned(ids))


def test_train_save_restore(net: Flow) -> None:
    trained = net.create(setting(0.5))
    trained.train()
    optimiser = torch.optim.SGD(trained.parameters(), 0.01)
    for step in range(5):
        optimiser.zero_grad()
        F.mse_loss(trained(IMAGES), torch.full((2, 5), float(step))).backward()
        optimiser.step()
    restored = net.restore(trained.eval())
    assert shapes(restored) == shapes(trained)
    assert torch.equal(restored.eval()(IMAGES), trained(IMAGES))
    wrapped = {f"module.{k}": v for k, v in trained.state_dict().items()}
    path = str(net.folder / "w.pth")
    torch.save({"model": wrapped, "empty": {}}, path)
    arguments = (net.model, IMAGES, net.record, net.cfg, path)
    again = restore_prune_retrain_model(*arguments, "model")
    assert torch.equal(again.eval()(IMAGES), trained(IMAGES))
    for name in ("none", "empty"):
        with pytest.raises(KeyError, match="state dict named"):
            restore_prune_retrain_model(*arguments, name)


def test_restore_refuses_what_does_not_fit(net: Flow) -> None:
    trained = net.create(setting(0.5))
    good = Path(net.record).read_text()
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        restore_prune_retrain_model(net.model, IMAGES, net.record, net.cfg, "none.pth")
    for text, words in (
        (good.replace('"c0"', '"other"'), 'cannot find "other"'),
        (good.replace("ints: ", "ints: 70"), "no groups of this model"),
        ("", "does not fit"),
        ("prune_record {", "line"),
    ):
        Path(net.record).write_text(text)
        with pytest.raises(RuntimeError, match=words):
            net.restore(trained)
    Path(net.record).unlink()
    with pytest.raises(FileNotFoundError):
        net.restore(trained)


def test_two_equal_files_that_compute_the_same(net: Flow, tmp_path: Path) -> None:
    pruned = net.create(setting(0.5))
    save_prune_retrain_model(
        pruned, str(tmp_path / "out" / "n"), IMAGES, ["x"], ["y"], {"x": {0: "batch"}}
    )
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert files == ["n_deploy_model.onnx", "n_fake_quant_model.onnx"]
    deploy, fake = ((tmp_path / "out" / name).read_bytes() for name in files)
    assert deploy == fake
    session = ort.InferenceSession(deploy, providers=["CPUExecutionProvider"])
    for batch in (IMAGES, torch.cat([IMAGES, IMAGES, IMAGES])):
        (made,) = session.run(["y"], {"x": batch.numpy()})
        with torch.no_grad():
            assert np.allclose(made, pruned(batch).numpy(), atol=1e-5)
    save_prune_retrain_model(pruned, f"{tmp_path}/plain/", IMAGES)
    assert (tmp_path / "plain" / "deploy_model.onnx").exists()
    for axes in ({"x": 0}, {1: [0]}, {"x": {"0": "b"}}, {"x": [-1]}):
        with pytest.raises(RuntimeError, match="dynamic_axes"):
            save_prune_retrain_model(pruned, str(tmp_path / "n"), IMAGES, dynamic_axes=axes)
    with pytest.raises(TypeError, match="dynamic_axes"):
        save_prune_retrain_model(pruned, str(tmp_path / "n"), IMAGES, dynamic_axes=["x"])


def test_a_pruned_model_is_quantised_like_any_other(net: Flow, tmp_path: Path) -> None:
    pruned = net.create(setting(0.5))
    config, onnx_file, record, prefix = (
        str(tmp_path / n) for n in ("q.json", "m.onnx", "q.txt", "net")
    )
    create_quant_config(config, pruned, IMAGES)
    quantize_model(config, onnx_file, record, pruned, IMAGES)(IMAGES)
    save_model(onnx_file, record, prefix)
    session = ort.InferenceSession(f"{prefix}_fake_quant_model.onnx")
    (made,) = session.run(None, {session.get_inputs()[0].name: IMAGES.numpy()})
    with torch.no_grad():
        expected = pruned(IMAGES).numpy()
    # Eight bits of a few hundred weights: about 30 dB.
    assert np.square(made - expected).mean() < 2e-3 * np.square(expected).mean()


class Shared(nn.Module):
    """Reuse, a shared Parameter and attention with a mask: nothing here may break (D-6, D-19)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))
        self.c.weight = self.b.weight
        self.hidden, self.out = nn.Linear(6, 8), nn.Linear(8, 2)
        self.register_buffer("mask", torch.triu(torch.full((4, 4), -1e9), 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(self.b(self.a(self.a(x))))
        x = torch.softmax(x @ x.transpose(1, 2) + self.mask, -1) @ x
        return self.out(self.hidden(x).relu())


def test_reuse_and_sharing_are_left_alone(tmp_path: Path) -> None:
    flow = Flow(tmp_path, Shared())
    data = torch.randn(2, 4, 6)
    pruned = flow.create(setting(0.5), data)
    assert shapes(pruned)["hidden"] == (4, 6) and shapes(pruned)["a"] == (6, 6)
    reasons = pruned.workbench_prune.reasons
    assert "called 2 times" in reasons["a"] and "shared with c" in reasons["b"]
    assert pruned.b.weight is pruned.c.weight
    lost = list(gone(read_record(flow.record).prune[0].producer[0]))
    flow.model.out.weight.data[:, lost] = 0
    assert torch.allclose(pruned(data), flow.model(data), atol=1e-6)


class Literal(nn.Module):
    """Names its size in its code: it cannot run with fewer channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).view(-1, 8)).relu())


def test_a_refused_group_is_named_and_not_in_the_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flow = Flow(tmp_path, Literal())
    data = torch.randn(4, 3)
    pruned = flow.create(setting(0.5), data)
    assert pruned.a.out_features == 8 and pruned.b.out_features == 3
    assert "a keep their channels" in caplog.text
    assert "regular_prune_skip_layers" in caplog.text
    assert [r.producer[0].name for r in read_record(flow.record).prune] == ["b"]
    assert pruned.workbench_prune.blocked()["a"]


class OneSample(nn.Module):
    """Its code has the number of samples in it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.b(torch.relu(self.a(x)))).reshape(1, -1))


def test_a_model_that_runs_with_one_sample_only(tmp_path: Path) -> None:
    flow, data = Flow(tmp_path, OneSample()), IMAGES[:1]
    with pytest.raises(RuntimeError):
        flow.model(IMAGES)
    pruned = flow.create(setting(0.5), data)
    assert shapes(pruned) == {"a": (8, 3, 3, 3), "b": (4, 8, 3, 3), "fc": (5, 4 * 64)}
    assert torch.equal(flow.restore(pruned, data)(data), pruned(data))


def test_mixture_of_modes(net: Flow) -> None:
    sparse = "prune_config { n_out_of_m_pruner { l1_selective_prune { } } }"
    pruned = net.create(sparse + override("c2", 0.5))
    channel, *masks = read_record(net.record).prune
    assert channel.producer[0].name == "c2"
    found = {m.selective_prune.name: m.selective_prune for m in masks}
    shape = next(a.ints for a in found["fc"].attr if a.name == "mask_shape")
    assert shape == (5, 5)
    assert torch.equal(net.restore(pruned)(IMAGES), pruned(IMAGES))


def test_bad_arguments(net: Flow) -> None:
    with pytest.raises(TypeError, match=r"create_prune_retrain_model.*model"):
        create_prune_retrain_model("net", IMAGES, net.cfg, net.record)
    with pytest.raises(TypeError, match="config_defination"):
        create_prune_retrain_model(net.model, IMAGES, 3, net.record)
    with pytest.raises(FileNotFoundError):
        create_prune_retrain_model(net.model, IMAGES, "nowhere.cfg", net.record)
    for ratio in (0, 1, 2, -0.5):
        with pytest.raises(ValueError, match="prune_ratio"):
            net.create(setting(ratio))
    net.create(setting(0.5))
    with pytest.raises(RuntimeError, match="input_data"):
        create_prune_retrain_model(net.model, [IMAGES], net.cfg, net.record)
    net.model.c0.weight.data[0] = float("nan")
    with pytest.raises(RuntimeError, match="NaN"):
        net.create(setting(0.5))


def test_a_preview_says_what_create_does(net: Flow) -> None:
    layers = {name: ChannelPrune(0.5, False) for name in ("c0", "c1", "c2", "fc")}
    shown = preview_pruning(capture(net.model, IMAGES, dynamic=False), PruneConfig(layers))
    done = net.create(setting(0.5)).workbench_prune
    assert shown == done
    assert [g.channels for g in shown.groups] == [8, 10]


def test_compat_comes_back_in_train_mode_and_is_remembered(net: Flow) -> None:
    assert net.create(setting(0.5), compat=True).training
    trained = net.create(setting(0.5), compat=True)
    assert net.restore(trained).training
    with pytest.raises(ValueError, match="compat"):
        net.restore(trained, compat=False)


def test_both_modes_in_one_block_warn(net: Flow, caplog: pytest.LogCaptureFixture) -> None:
    net.create(setting(0.5).replace("filter_pruner", "n_out_of_m_pruner { } filter_pruner"))
    assert "names both" in caplog.text


def test_nothing_is_written_when_cancelled(net: Flow) -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        net.create(setting(0.5), cancel=token)
    assert not Path(net.record).exists()


def test_quantisation_only_prunes_nothing(net: Flow, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    plain = net.create("retrain_data_quant_config { ulq_quantize { } }")
    assert shapes(plain) == shapes(net.model)
    assert "No channel is removed" not in caplog.text
    assert "nothing is pruned. create_compressed_retrain_model" in caplog.text
