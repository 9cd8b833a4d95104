"""Graph QAT: what is inserted, how it trains, how it comes back (chapter 30 sections 1 to 6)."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from qat_models import (
    Files,
    SmallNet,
    batch,
    evaluate,
    make_model,
    sgd,
    small_net,
    train_steps,
)
from torch import Tensor, nn

from workbench.engine import (
    create_quant_config,
    create_quant_retrain_config,
    create_quant_retrain_model,
    restore_quant_retrain_model,
)
from workbench.engine.events import Event, Notice
from workbench.engine.files.record import read_record
from workbench.engine.flows.qat_state import wrappers
from workbench.engine.modules.qat.retrain_quant import RetrainQuant

LAYERS = ("stem", "body", "side", "head")

# Chapter 30 section 4.2, without what RNN layers have.
KEYS = {
    *("quant_module.acts_clip_max", "quant_module.acts_clip_min"),
    *("quant_module.acts_clip_max_pre", "quant_module.acts_clip_min_pre"),
    *("quant_module.acts_scale", "quant_module.acts_offset"),
    *("quant_module.wts_scales", "quant_module.wts_offsets"),
    *("quant_module.replaced_module.weight", "quant_module.replaced_module.bias"),
    *("bn_module.weight", "bn_module.bias", "bn_module.running_mean", "bn_module.running_var"),
    "bn_module.num_batches_tracked",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Files, nn.Module]:
    """A model that was just created, in training mode; copy it before use."""
    files = Files(tmp_path_factory.mktemp("qat"))
    return files, make_model(files, small_net(), batch(0))


@pytest.fixture
def model(made: tuple[Files, nn.Module], tmp_path: Path) -> nn.Module:
    duplicate = copy.deepcopy(made[1])
    duplicate.workbench_qat.record_file = str(tmp_path / "record.txt")
    return duplicate


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_what_is_inserted(made: tuple[Files, nn.Module]) -> None:
    model = made[1]
    assert tuple(wrappers(model)) == LAYERS
    assert isinstance(model.bn, nn.Identity)
    assert isinstance(model.stem.bn_module, nn.BatchNorm2d)
    treatments = model.workbench_qat.treatments
    assert [treatments[name].fixed_min for name in LAYERS] == [False, True, True, True]
    assert [treatments[name].owner for name in LAYERS] == ["stem", "body", "body", "head"]
    assert model.training
    assert model.head.out_features == 3  # what a user's own code may ask of a layer
    keys = {key.partition(".")[2] for key in model.state_dict()}
    assert keys <= KEYS
    assert "side.quant_module.acts_clip_max" not in model.state_dict()


def test_the_users_model_is_not_touched(files: Files) -> None:
    net = small_net().eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    model = make_model(files, net, batch(0))
    assert not model.training
    train_steps(model, sgd(model), range(2))
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not net.training


def test_the_float_model_is_what_trains_when_bits_are_plenty(files: Files) -> None:
    # 16-bit activations and 8-bit weights: the function is close to the float one.
    data = {"retrain_data_config": {"dst_type": "INT16"}}
    model = make_model(files, small_net(), batch(0), layers=dict.fromkeys(LAYERS, data))
    net = small_net()
    x = batch(1, 8)
    expected, found = net(x).detach(), model(x)
    assert torch.allclose(expected, found, atol=0.05 * float(expected.abs().max()))


def test_clips_start_from_the_search_and_are_trained(model: nn.Module) -> None:
    owner = model.stem.quant_module
    assert torch.isnan(owner.acts_clip_max_pre)
    x = batch(1)
    model(x)
    assert owner.acts_clip_max.item() == pytest.approx(float(x.abs().max()), rel=0.4)
    before = owner.acts_clip_max.item()
    train_steps(model, sgd(model), range(2, 5))
    assert owner.acts_clip_max.item() != before
    evaluate(model, x)
    assert model.body.quant_module.acts_clip_min.item() == 0.0


def test_a_clip_five_times_too_large_shrinks(files: Files) -> None:
    wide = {"retrain_data_config": {"clip_max": 20.0, "clip_min": -20.0, "dst_type": "INT4"}}
    wide["retrain_weight_config"] = {"dst_type": "INT4"}
    model = make_model(files, small_net(), batch(0), layers={"stem": wide})
    clips = [p for n, p in model.named_parameters() if "stem.quant_module.acts_clip" in n]
    optimizer = torch.optim.Adam(clips, lr=0.2)
    target = small_net()(batch(100, 16)).detach()
    for _ in range(40):
        loss = (model(batch(100, 16)) - target).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(model.stem.quant_module.acts_clip_max) < 15.0


def test_layers_that_share_count_each_batch_once(files: Files) -> None:
    model = make_model(files, small_net(), batch(0), batch_num=3)
    for step in range(2):
        model(batch(step))
    assert not model.body.quant_module.is_initialised()
    assert model.side.quant_module.batches_seen() == 2
    model(batch(2))
    assert model.side.quant_module.is_initialised()


def test_layers_with_different_settings_do_not_share(files: Files) -> None:
    other = {"side": {"retrain_weight_config": {"algo": "ulq_retrain"}}}
    model = make_model(files, small_net(), batch(0), layers=other)
    assert model.workbench_qat.treatments["side"].owner == "side"
    assert isinstance(model.side.quant_module.wts_scales, nn.Parameter)


def test_a_copy_trains_its_own_parameters(model: nn.Module) -> None:
    model(batch(0))
    twin = copy.deepcopy(model)
    assert {id(p) for p in twin.parameters()}.isdisjoint({id(p) for p in model.parameters()})
    assert twin.side.quant_module.activation_owner is twin.body.quant_module
    before = copy.deepcopy(model.state_dict())
    train_steps(twin, sgd(twin), range(3))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_model_can_be_pickled_whole(model: nn.Module) -> None:
    train_steps(model, sgd(model), range(2))
    twin = pickle.loads(pickle.dumps(model))
    x = batch(5)
    assert torch.equal(evaluate(twin, x), evaluate(model, x))


def test_evaluation_keeps_nothing_for_a_backward_pass(model: nn.Module) -> None:
    train_steps(model, sgd(model), range(1))
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = evaluate(model, batch(1))
    assert not output.requires_grad
    assert not kept


def test_bfloat16_autocast(model: nn.Module) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(batch(0)).float().pow(2).mean()
    loss.backward()
    assert torch.isfinite(model.stem.quant_module.acts_clip_max.grad)
    assert torch.isfinite(model.stem.weight.grad).all()


# --- the record -------------------------------------------------------------------------------


def test_every_evaluation_after_training_refreshes_the_record(model: nn.Module) -> None:
    path = model.workbench_qat.record_file
    optimizer = sgd(model)
    train_steps(model, optimizer, range(2))
    assert not Path(path).exists()
    evaluate(model, batch(9))
    first = read_record(path)
    evaluate(model, batch(10))
    assert read_record(path) == first
    train_steps(model, optimizer, range(2, 4))
    evaluate(model, batch(9))
    second = read_record(path)
    assert all(second.layers[n].scale_w != first.layers[n].scale_w for n in LAYERS)
    assert list(second.layers) == list(LAYERS)


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ("body.quant_module.acts_clip_max", r"layer body: its clip bounds are .* and nan.*checkp"),
        ("body.quant_module.replaced_module.weight", r"layer body: its weight.*holds inf or NaN"),
    ],
)
def test_a_diverged_model_writes_no_record(model: nn.Module, parameter: str, words: str) -> None:
    evaluate(model, batch(0))
    record = Path(model.workbench_qat.record_file)
    before = record.read_text()
    model.train()
    model(batch(0))
    with torch.no_grad():
        model.get_parameter(parameter).fill_(math.nan)
    model(batch(0)).sum().backward()
    with pytest.raises(RuntimeError, match=words):
        evaluate(model, batch(0))
    assert record.read_text() == before


def test_evaluation_alone_calibrates(model: nn.Module) -> None:
    evaluate(model, batch(0))
    assert list(read_record(model.workbench_qat.record_file).layers) == list(LAYERS)


def test_no_record_before_all_batches_are_seen(files: Files) -> None:
    model = make_model(files, small_net(), batch(0), batch_num=2)
    evaluate(model, batch(0))
    assert Path(files.record).read_text() == ""
    evaluate(model, batch(1))
    assert len(read_record(files.record).layers) == len(LAYERS)


# --- checkpoints ------------------------------------------------------------------------------


def test_a_restored_run_goes_on_as_if_it_had_not_stopped(
    made: tuple[Files, nn.Module], files: Files, model: nn.Module
) -> None:
    config = made[0].config
    optimizer = sgd(model)
    train_steps(model, optimizer, range(3))
    torch.save({"net": model.state_dict(), "sgd": optimizer.state_dict()}, files.checkpoint)
    rest = train_steps(model, optimizer, range(3, 7))

    restored = restore_quant_retrain_model(
        config, small_net(), files.record, batch(0), files.checkpoint, "net"
    )
    again = sgd(restored)
    again.load_state_dict(torch.load(files.checkpoint, weights_only=True)["sgd"])
    assert train_steps(restored, again, range(3, 7)) == rest


@pytest.mark.parametrize(
    ("part", "width", "named"),
    [
        ("retrain_data_config", "INT16", "acts"),
        ("retrain_weight_config", "INT4", "wts"),
    ],
)
def test_a_checkpoint_of_other_bit_widths_is_refused(
    made: tuple[Files, nn.Module], files: Files, model: nn.Module, part: str, width: str, named: str
) -> None:
    train_steps(model, sgd(model), range(2))
    torch.save(model.state_dict(), files.checkpoint)
    config = json.loads(Path(made[0].config).read_text())
    layer = next(name for name, value in config.items() if isinstance(value, dict))
    config[layer][part]["dst_type"] = width
    Path(files.config).write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match=rf"other bit widths .*{layer}.*\({named}\)"):
        restore_quant_retrain_model(
            files.config, small_net(), files.record, batch(0), files.checkpoint
        )


def reference_checkpoint(model: nn.Module) -> dict[str, Tensor]:
    """The state dict that the reference would have written for this model (section 4.2)."""
    state = dict(model.state_dict())
    for name, wrapper in wrappers(model).items():
        layer, weight = f"{name}.quant_module", wrapper.weight
        channels = wrapper.quant_module.wts_scales.numel()
        state |= {
            f"{name}.scale_w": torch.ones(channels),
            f"{name}.offset_w": torch.zeros(channels),
            f"{name}.record_module.quant_layer_num": torch.tensor(4.0),
            f"{layer}.wts_offsets": torch.full((channels,), torch.nan),
            f"{layer}.wts_mask": torch.full_like(weight, torch.nan),
            f"{layer}.cur_batch": torch.tensor(7.0),
            f"{layer}.prune_cur_batch": torch.tensor(0.0),
            f"{layer}.s_rec_flag": torch.tensor(0.0),
        }
    owner = "body.quant_module."
    shared = {k: v for k, v in state.items() if k.startswith(owner)}
    return state | {
        f"side.quant_module.acts_comp_reuse.{key.removeprefix(owner)}": value
        for key, value in shared.items()
    }


def test_a_checkpoint_of_the_reference_restores(
    made: tuple[Files, nn.Module], files: Files, model: nn.Module
) -> None:
    train_steps(model, sgd(model), range(3))
    expected = evaluate(model, batch(9))
    clips = {k: v.clone() for k, v in model.state_dict().items() if "clip_m" in k}
    state = reference_checkpoint(model)
    torch.save({f"module.{key}": value for key, value in state.items()}, files.checkpoint)
    restored = restore_quant_retrain_model(
        made[0].config, small_net(7), files.record, batch(0), files.checkpoint
    )
    assert torch.equal(evaluate(restored, batch(9)), expected)
    restored.train()(batch(11) * 5)
    found = restored.state_dict()
    assert all(torch.equal(found[key], value) for key, value in clips.items())


def test_a_reference_checkpoint_from_within_the_search_goes_on_searching(files: Files) -> None:
    model = make_model(files, small_net(), batch(0), batch_num=3)
    model(batch(0))
    state = reference_checkpoint(model)
    for key in state:
        if key.endswith("_pre"):
            state[key] = torch.tensor(1.0)  # the reference sets them from the first batch on
        if key.endswith(".cur_batch"):
            state[key] = torch.tensor(1.0)
    model.load_state_dict(state)
    assert not model.stem.quant_module.is_initialised()


def restore(made: tuple[Files, nn.Module], files: Files, name: str | None = None) -> nn.Module:
    return restore_quant_retrain_model(
        made[0].config, small_net(), files.record, batch(0), files.checkpoint, name
    )


@pytest.mark.parametrize(
    ("content", "name", "error", "words"),
    [
        ({"other.weight": torch.ones(1)}, None, RuntimeError, "does not fit the model"),
        ({"net": {}}, "net", KeyError, "no state dict named 'net'"),
        ({"net": {"a": torch.ones(1)}}, "sgd", KeyError, "the file holds net"),
        ({"epoch": 3}, None, RuntimeError, r"state_dict_name\."),
        ({"e": 3, "net": {"a": torch.ones(1)}}, None, RuntimeError, r"state_dict_name \('net'\)"),
        ([1, 2], None, RuntimeError, "no state dict"),
        (SmallNet(), None, RuntimeError, r"read safely: it holds a \S*SmallNet, not only tensors"),
    ],
    ids=["other_model", "empty", "no_such_name", "no_tensors", "unnamed", "list", "whole_module"],
)
def test_wrong_checkpoints(
    made: tuple[Files, nn.Module],
    files: Files,
    content: Any,
    name: str | None,
    error: type[Exception],
    words: str,
) -> None:
    torch.save(content, files.checkpoint)
    Path(files.record).write_text("of a training that went well")
    with pytest.raises(error, match=words):
        restore(made, files, name)
    assert Path(files.record).read_text() == "of a training that went well"


def test_a_file_of_another_kind_is_no_advice_to_read_it_unsafely(
    made: tuple[Files, nn.Module], files: Files
) -> None:
    Path(files.checkpoint).write_text("prune_config { }")
    with pytest.raises(RuntimeError, match="torch cannot read it") as caught:
        restore(made, files)
    assert "weights_only" not in str(caught.value)


def test_a_missing_checkpoint_is_named(made: tuple[Files, nn.Module], files: Files) -> None:
    with pytest.raises(FileNotFoundError, match=r"state\.pth"):
        restore(made, files)


def test_a_checkpoint_of_another_config_does_not_fit(files: Files, model: nn.Module) -> None:
    torch.save(model.state_dict(), files.checkpoint)
    data = {"stem": {}, "head": {"retrain_enable": False}}
    Path(files.config).write_text(json.dumps(data))
    with pytest.raises(RuntimeError, match=r"does not fit.*\"head\.weight\""):
        restore_quant_retrain_model(
            files.config, small_net(), files.record, batch(0), files.checkpoint
        )


# --- bad input --------------------------------------------------------------------------------


def test_a_model_in_training_starts_no_other_flow(
    model: nn.Module, files: Files, made: tuple[Files, nn.Module]
) -> None:
    with pytest.raises(RuntimeError, match="already contains compression modules: stem"):
        create_quant_config(files.config, model, batch(0))
    with pytest.raises(RuntimeError, match="already contains"):
        create_quant_retrain_model(made[0].config, model, files.record, batch(0))


def test_data_parallel_is_refused(made: tuple[Files, nn.Module], files: Files) -> None:
    wrapped = nn.DataParallel(small_net())
    with pytest.raises(RuntimeError, match="DistributedDataParallel"):
        create_quant_retrain_config(files.config, wrapped, batch(0))
    with pytest.raises(RuntimeError, match="DistributedDataParallel"):
        create_quant_retrain_model(made[0].config, wrapped, files.record, batch(0))
    with pytest.raises(RuntimeError, match="layer stem"):
        made[1].stem._replicate_for_data_parallel()


def test_a_config_for_a_layer_that_is_not_there(files: Files) -> None:
    Path(files.config).write_text('{"stam":{}}')
    with pytest.raises(ValueError, match="stem"):
        create_quant_retrain_model(files.config, small_net(), files.record, batch(0))
    assert not Path(files.record).exists()


def test_a_model_without_a_layer_to_train(files: Files) -> None:
    with pytest.raises(ValueError, match="without a layer that can be quantised"):
        create_quant_retrain_config(files.config, nn.Sequential(nn.ReLU()), batch(0))


def test_a_text_config_decides_and_is_checked(files: Files) -> None:
    text = files.folder / "qat.cfg"
    with pytest.raises(FileNotFoundError):
        create_quant_retrain_config(files.config, small_net(), batch(0), str(text))
    text.write_text('batch_num: 2 quant_skip_layers: "head"')
    create_quant_retrain_config(files.config, small_net(), batch(0), str(text))
    data = json.loads(Path(files.config).read_text())
    assert data["batch_num"] == 2
    assert [data[name]["retrain_enable"] for name in LAYERS] == [True, True, True, False]


def test_layers_that_stay_float_are_said_with_their_reason(files: Files) -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(4, 4, num_layers=2)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
            out: Tensor = self.head(self.rnn(x, (h, c))[0])
            return out

    events: list[Event] = []
    x, state = torch.randn(3, 2, 4), torch.zeros(2, 2, 4)
    create_quant_retrain_config(files.config, Stacked(), (x, state, state), on_event=events.append)
    notices = [event.message for event in events if isinstance(event, Notice)]
    assert any("rnn: it stacks 2 layers" in text for text in notices)
    assert "rnn" not in json.loads(Path(files.config).read_text())


def test_compat_of_the_config_decides(files: Files) -> None:
    create_quant_retrain_config(files.config, small_net(), batch(0), compat=True)
    with pytest.raises(ValueError, match="compat=False contradicts"):
        create_quant_retrain_model(files.config, small_net(), files.record, batch(0), compat=False)
    model = create_quant_retrain_model(files.config, small_net(), files.record, batch(0))
    treatments = model.workbench_qat.treatments
    assert [treatments[name].fixed_min for name in LAYERS] == [False, True, True, False]


def test_a_module_reached_by_two_names_is_wrapped_once(files: Files) -> None:
    class Alias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(2, 2, 1)
            self.again = nn.ModuleList([self.first])

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.again[0](x)
            return out

    model = make_model(files, Alias(), batch(0))
    assert isinstance(model.first, RetrainQuant)
    assert model.again[0] is model.first
