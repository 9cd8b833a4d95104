"""``quantize`` and ``convert`` on whole models: in place, in steps, saved and taken up again."""

from __future__ import annotations

import copy
import gc
import io
import logging
import weakref
from typing import Any

import pytest
import torch
from small_layers import config, inputs, tokens, weights
from torch import Tensor, nn

from workbench.engine import (
    INT8_SMOOTHQUANT_CFG,
    BaseQuantizeModule,
    Cancelled,
    CancelToken,
    algorithm_register,
    convert,
    quantization_report,
    quantize,
)
from workbench.engine.events import Event, Notice, Progress
from workbench.engine.graph.capture import capture
from workbench.engine.modules.quantize import registry

SMOOTH = {"smoothquant": {"smooth_strength": 0.5}}
FULL = config("minmax", weights(), inputs(), batch_num=2)


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


class Net(nn.Module):
    """Two blocks that share a module, a head tied to an embedding, and something else."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(64, 64)
        self.first = nn.ModuleDict({"proj": shared, "own": nn.Linear(64, 64)})
        self.second = nn.ModuleDict({"proj": shared, "own": nn.Linear(64, 64)})
        self.embedding = nn.Embedding(32, 64)
        self.lm_head = nn.Linear(64, 32, bias=False)
        self.lm_head.weight = self.embedding.weight
        self.conv = nn.Conv1d(1, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in (self.first, self.second):
            x = x + block["own"](block["proj"](x).relu())
        return self.lm_head(x)


def kinds(model: nn.Module) -> set[str]:
    return {type(module).__name__ for module in model.modules()}


def test_a_shared_module_is_replaced_at_all_its_places_and_parameters_are_the_same() -> None:
    model = Net().bfloat16()
    own, tied = model.first["own"].weight, model.embedding.weight
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert quantize(model, FULL) is None
    assert model.first["proj"] is model.second["proj"]
    assert model.first["own"].weight is own
    assert model.lm_head.weight is tied
    report = quantization_report(model)
    assert [entry.name for entry in report] == [
        "first.proj",
        "first.own",
        "second.own",
        "lm_head",
    ]
    x = tokens(2, 5, 64, dtype=torch.bfloat16)
    model(x)
    # The shared module is called twice a batch.
    assert model.first["proj"].cur_batch == 2
    assert model.first["own"].cur_batch == 1
    model(x)
    assert convert(model) is model
    assert model.first["proj"] is model.second["proj"]
    report = quantization_report(model)
    assert {entry.action for entry in report} == {"converted"}
    assert {entry.note for entry in report} == {"scales are rounded to bfloat16"}
    assert torch.equal(model.embedding.weight, before["embedding.weight"])
    assert "NpuQuantizationLinear" in kinds(model) and "Linear" not in kinds(model)
    again = model(x)
    convert(model)
    assert torch.equal(model(x), again)


def test_an_entry_for_one_name_of_a_shared_module_skips_it() -> None:
    model = Net().half()
    quantize(model, FULL | {"skip_layers": ["second.proj"]})
    assert type(model.first["proj"]) is nn.Linear
    left = {e.name: e.reason for e in quantization_report(model) if e.action == "float"}
    assert left == {"first.proj": "skip_layers has 'second.proj'"}


def test_a_model_that_is_the_layer_cannot_be_replaced() -> None:
    with pytest.raises(ValueError, match=r"the model itself is a Linear.*Wrap it"):
        quantize(nn.Linear(64, 8).half())


def test_convert_before_calibration_lists_what_is_missing() -> None:
    model = Net().half()
    quantize(model, FULL)
    x = tokens(1, 2, 64, dtype=torch.float16)
    model(x)
    with pytest.raises(RuntimeError) as caught:
        convert(model)
    text = str(caught.value)
    assert "3 layers are not calibrated yet" in text
    assert "- first.own: 1 of 2 calls seen" in text
    assert "first.proj" not in text and "name them in skip_layers" in text
    assert kinds(model) >= {"MinMaxQuant"} and "NpuQuantizationLinear" not in kinds(model)
    model(x)
    convert(model)
    with pytest.raises(TypeError, match="model must be Module"):
        convert(None)  # type: ignore[arg-type]


def test_weight_only_rounding_needs_no_batch() -> None:
    model = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 64)).half()
    x = tokens(3, 64, dtype=torch.float16)
    before = model(x)
    quantize(model)
    calibrated = model(x)
    assert not torch.equal(calibrated, before)
    convert(model)
    assert (model(x) - calibrated).abs().max() <= 0.02 * calibrated.std()


def test_two_configurations_one_after_the_other() -> None:
    model = Net().half()
    quantize(model, FULL | {"skip_layers": ["own", "lm_head"]})
    quantize(model, config("minmax", weights("int4")) | {"skip_layers": ["lm_head"]})
    formats = {e.name: e.formats for e in quantization_report(model)}
    assert formats == {
        "first.proj": "int8/int8",
        "first.own": "–/int4",
        "second.own": "–/int4",
        "lm_head": "",
    }


@pytest.mark.parametrize(
    ("algorithm", "type_", "act"),
    [
        ("minmax", "int8", "int8"),
        (SMOOTH, "int8", "int8"),
        ({"awq": {"grids_num": 3}}, "int4", None),
        ("gptq", "int4", None),
        ("ofmr", "hifloat8", "hifloat8"),
        ("quantile", "hifloat8", "hifloat8"),
    ],
)
def test_a_half_calibrated_model_is_saved_and_taken_up_again(
    algorithm: Any, type_: str, act: str | None
) -> None:
    given = config(algorithm, weights(type_), act and inputs(act), batch_num=2)
    layer = nn.Linear(64, 16)
    first, second = tokens(4, 64), tokens(6, 64, seed=1) * 2
    one, other = nn.Sequential(layer), nn.Sequential(copy.deepcopy(layer))
    for model in (one, other):
        quantize(model, given, any_dtype=True)
    one(first)
    saved = io.BytesIO()
    torch.save(one.state_dict(), saved)
    saved.seek(0)
    other.load_state_dict(torch.load(saved, weights_only=True), strict=True)
    assert other[0].cur_batch == 1
    # A whole copy goes on as well.
    third = copy.deepcopy(one)
    for model in (one, other, third):
        model(second)
    x = tokens(5, 64, seed=2)
    expected = one(x)
    assert torch.equal(other(x), expected)
    assert torch.equal(third(x), expected)
    # Calibrated to the end and saved: a fresh model is done by loading it.
    fresh = nn.Sequential(copy.deepcopy(layer))
    quantize(fresh, given, any_dtype=True)
    fresh.load_state_dict(one.state_dict(), strict=True)
    assert torch.equal(fresh(x), expected)
    for model in (one, fresh):
        convert(model)
    assert torch.equal(one(x), fresh(x))
    # Back to the start: what the saved model had not found yet is forgotten.
    quantize(late := nn.Sequential(copy.deepcopy(layer)), given, any_dtype=True)
    late(first), late(first)
    saved.seek(0)
    late.load_state_dict(torch.load(saved, weights_only=True), strict=True)
    late(second)
    assert torch.equal(late(x), expected)


def test_a_converted_model_is_saved_and_loaded() -> None:
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = Net().half()
        quantize(model, INT8_SMOOTHQUANT_CFG)
        model(tokens(3, 64, seed=seed, dtype=torch.float16))
        models.append(convert(model))
    x = tokens(4, 64, seed=5, dtype=torch.float16)
    assert not torch.equal(models[0](x), models[1](x))
    models[1].load_state_dict(models[0].state_dict(), strict=True)
    assert torch.equal(models[0](x), models[1](x))
    assert "scale_factor" in {key.rpartition(".")[2] for key in models[0].state_dict()}


def test_a_converted_layer_lets_go_of_the_float_weight() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3))).half()
    weights_alive = [weakref.ref(layer.weight) for layer in model]
    quantize(model)
    alive: list[int] = []

    def count(_event: Event) -> None:
        gc.collect()
        alive.append(sum(ref() is not None for ref in weights_alive))

    convert(model, on_event=count)
    # The one in hand is let go with the next.
    assert alive == [3, 2, 1]
    gc.collect()
    assert not any(ref() for ref in weights_alive)
    assert all(value.is_contiguous() for value in model.state_dict().values())


def test_statistics_move_with_the_model() -> None:
    model = nn.Sequential(nn.Linear(64, 8))
    quantize(model, config(SMOOTH, weights(), inputs()), any_dtype=True)
    model.to("meta")
    assert model[0].statistics()["ranges"].low.device.type == "meta"


def test_progress_is_told_and_a_cancel_leaves_the_model_as_it_was() -> None:
    events: list[Event] = []
    model = Net().half()
    token = CancelToken()

    def stop_after_one(event: Event) -> None:
        events.append(event)
        token.cancel()

    with pytest.raises(Cancelled):
        quantize(model, FULL, on_event=stop_after_one, cancel=token)
    assert events == [Progress("quantize", 1, 4)]
    assert "MinMaxQuant" not in kinds(model)
    quantize(model, FULL, on_event=events.append)
    assert events[1:] == [Progress("quantize", i, 4) for i in range(1, 5)]
    x = tokens(2, 64, dtype=torch.float16)
    model(x), model(x)
    token = CancelToken()
    with pytest.raises(Cancelled):
        convert(model, on_event=lambda event: token.cancel(), cancel=token)
    # What was converted stays so; the rest follows when called again.
    assert {"MinMaxQuant", "NpuQuantizationLinear"} <= kinds(model)
    convert(model)
    assert "MinMaxQuant" not in kinds(model)
    events.clear()
    quantize(nn.Sequential(nn.Linear(64, 8)), FULL, on_event=events.append)
    assert isinstance(events[0], Notice) and "nothing was quantised" in events[0].message


@pytest.mark.parametrize("state", ["calibrating", "converted"])
def test_a_second_configuration_for_the_same_layers_is_no_silent_no_op(
    caplog: pytest.LogCaptureFixture, state: str
) -> None:
    model = Net().half()
    quantize(model)
    if state == "converted":
        convert(model)
    before = kinds(model)
    quantize(model, FULL | {"skip_layers": ["lm_head"]})
    assert kinds(model) == before
    assert "nothing more was quantised; 3 layers went through quantize() before" in caplog.text
    assert "start from the float model" in caplog.text
    assert "skip_layers has 'lm_head' (1 layer)" in caplog.text


@pytest.mark.parametrize("state", ["calibrating", "converted"])
def test_flows_that_need_the_float_model_refuse_a_quantised_one(state: str) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU()).half()
    x = tokens(3, 64, dtype=torch.float16)
    quantize(model, INT8_SMOOTHQUANT_CFG)
    model(x)
    if state == "converted":
        convert(model)
    with pytest.raises(RuntimeError, match="already contains compression modules: 0"):
        capture(model, (x,))


@pytest.mark.parametrize("activations", ["tensor", "token"])
def test_a_converted_int8_model_can_be_exported(activations: str) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU()).half()
    x = tokens(3, 64, dtype=torch.float16)
    quantize(model, config("minmax", weights(), inputs(strategy=activations)))
    model(x)
    convert(model)
    assert torch.equal(torch.export.export(model, (x,)).module()(x), model(x))


def test_a_report_is_there_only_after_quantize() -> None:
    with pytest.raises(RuntimeError, match=r"no report.*Call quantize\(\) first"):
        quantization_report(nn.Sequential())


class HalfQuant(BaseQuantizeModule):
    """A user's algorithm: weights rounded to halves."""

    def __init__(
        self, ori_module: nn.Module, layer_name: str, quant_config: dict[str, Any]
    ) -> None:
        super().__init__(ori_module, layer_name, quant_config)
        self.inner = ori_module
        self.seen = quant_config
        self.scale = 2.0

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.inner.weight * self.scale).round() / self.scale
        return nn.functional.linear(x, weight, self.inner.bias)


class HalfDeploy(nn.Module):
    def __init__(self, quant_module: HalfQuant) -> None:
        super().__init__()
        self.register_buffer("codes", (quant_module.inner.weight * 2).round().to(torch.int8))
        self.bias = quant_module.inner.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.codes.to(x.dtype) / 2, self.bias)


@pytest.fixture
def registered() -> Any:
    """The registry as it is, given back."""
    algorithms = copy.deepcopy(registry._algorithms)
    deploys = copy.copy(registry._deploy_ops)
    yield
    registry._algorithms.clear()
    registry._algorithms.update(algorithms)
    registry._deploy_ops.clear()
    registry._deploy_ops.update(deploys)


@pytest.mark.usefixtures("registered")
def test_an_algorithm_of_the_users_own_sees_its_dict_and_is_deployed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    algorithm_register("mine", "Linear", HalfQuant)
    # No rule of pairs, shapes or types holds for it.
    given = config({"mine": {"k": 1}}, weights("hifloat8"), inputs("int4", "token"))
    model = nn.Sequential(nn.Linear(3, 5, dtype=torch.float64), nn.Linear(5, 2))
    quantize(model, given | {"skip_layers": "1"})
    assert type(model[1]) is nn.Linear
    assert model[0].layer_name == "0"
    assert model[0].seen == {
        "batch_num": 1,
        "weights_cfg": {"quant_type": "hifloat8", "symmetric": True, "strategy": "channel"},
        "inputs_cfg": {
            "quant_type": "int4",
            "symmetric": True,
            "strategy": "token",
            "dynamic": None,
        },
        "kvcache_cfg": {"enable_quant": False},
        "algorithm": {"mine": {"k": 1}},
    }
    x = tokens(2, 3).double()
    expected = model[0](x)
    # The Linear inside of it is not found by another call.
    quantize(model, config("minmax", weights("int4"), skip_layers=["1"]))
    assert type(model[0].inner) is nn.Linear
    with caplog.at_level(logging.WARNING):
        convert(model)
    assert "keep their calibration module: 0" in caplog.text
    assert torch.equal(model[0](x), expected)
    algorithm_register("mine", "Linear", HalfQuant, HalfDeploy)
    convert(model)
    assert type(model[0]) is HalfDeploy
    assert torch.equal(model[0](x), expected)


@pytest.mark.usefixtures("registered")
def test_options_given_as_a_set_arrive_as_none_and_other_layers_may_be_added() -> None:
    algorithm_register("mine", "Embedding", HalfQuant)
    model = nn.Sequential(nn.Embedding(4, 64), nn.Linear(64, 8)).half()
    both = config({"mine", "minmax"}, weights())
    quantize(model, both)
    assert model[0].seen["algorithm"] == {"mine": None}
    assert model[1].quant_config["algorithm"] == {}
    assert type(model[1]).__name__ == "MinMaxQuant"
    algorithm_register("minmax", "Embedding", HalfQuant)
    with pytest.raises(ValueError, match="mine and minmax; allowed: one that takes Embedding"):
        quantize(nn.Sequential(nn.Embedding(4, 64)).half(), both)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, "Linear", HalfQuant), "name must be a string"),
        (("mine", nn.Linear, HalfQuant), "src_op must be a string"),
        (("mine", "Linear", nn.Linear), "quant_op must be a subclass of BaseQuantizeModule"),
        (("mine", "Linear", "HalfQuant"), "quant_op must be"),
        (("mine", "Linear", HalfQuant, [HalfDeploy]), "deploy_op must be a subclass of Module"),
        (("mine", "Linear", HalfQuant, dict), "deploy_op must be"),
    ],
)
@pytest.mark.usefixtures("registered")
def test_registering_what_is_no_module_is_a_type_error(arguments: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        algorithm_register(*arguments)
    assert "mine" not in registry.known_algorithms()
