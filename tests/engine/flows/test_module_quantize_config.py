"""The dict of ``quantize``: every combination of chapter 25 section 3, every fault."""

from __future__ import annotations

import copy
import itertools
import logging
from typing import Any

import pytest
import torch
from torch import nn

from workbench.engine import quantization_report, quantize
from workbench.engine.flows.module_quantize_config import parse_config
from workbench.engine.flows.module_quantize_presets import PRESETS
from workbench.engine.flows.module_quantize_selection import select

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
OPTIONS = {"awq": {"grids_num": 2}, "smoothquant": {"smooth_strength": 0.5}}

# Copied from the chapter: inputs, weights, algorithms, weight strategies, input strategies, dtypes.
TABLE = """
int8 int8 | minmax smoothquant | tensor channel | tensor token | f16 bf16
int8 int4 | minmax smoothquant | tensor channel | tensor | f16
hifloat8 hifloat8 | ofmr cast quantile smoothquant | tensor channel | tensor token | f32 f16 bf16
float8_e4m3fn float8_e4m3fn | ofmr | tensor channel | tensor | f32 f16 bf16
mxfp8_e4m3fn mxfp8_e4m3fn | mxquant | group | group | bf16
float8_e4m3fn float4_e2m1 | minmax smoothquant | group | tensor | bf16
- int8 | minmax awq gptq | tensor channel group | - | f16 bf16
- int4 | minmax awq gptq | tensor channel group | - | f32 f16 bf16
- hifloat8 | ofmr gptq cast quantile | tensor channel | - | f16 bf16
- float8_e4m3fn | ofmr gptq | tensor channel | - | f16 bf16
- mxfp4_e2m1 | awq gptq mxquant | group | - | f16 bf16
- float4_e2m1 | minmax awq gptq | group | - | f16 bf16
"""
DTYPES = {"f32": F32, "f16": F16, "bf16": BF16}
WEIGHTS = (
    "int8 int4 hifloat8 float8_e4m3fn mxfp8_e4m3fn mxfp4_e2m1 float4_e2m1".split()  # noqa: SIM905
)
INPUTS = [None, "int8", "int4", "hifloat8", "float8_e4m3fn", "mxfp8_e4m3fn"]
ALGORITHMS = "minmax smoothquant awq gptq ofmr mxquant cast quantile".split()  # noqa: SIM905


def legal() -> dict[tuple[str | None, str, str, str, str | None], set[torch.dtype]]:
    found = {}
    for line in TABLE.strip().splitlines():
        pair, algorithms, weights, inputs, dtypes = (part.split() for part in line.split("|"))
        act = None if pair[0] == "-" else pair[0]
        for algorithm, strategy, way in itertools.product(algorithms, weights, inputs):
            key = (act, pair[1], algorithm, strategy, None if way == "-" else way)
            found[key] = {DTYPES[name] for name in dtypes}
    return found


def config(
    weights: dict[str, Any] | None = None,
    inputs: dict[str, Any] | None = None,
    algorithm: Any = "minmax",
    **others: Any,
) -> dict[str, Any]:
    quant_cfg: dict[str, Any] = {
        "weights": weights or {"type": "int8", "symmetric": True, "strategy": "channel"}
    }
    if inputs is not None:
        quant_cfg["inputs"] = inputs
    return {"quant_cfg": quant_cfg | others.pop("more", {}), "algorithm": algorithm, **others}


def weights(type_: str = "int8", strategy: str = "channel", **others: Any) -> dict[str, Any]:
    group = {"group_size": 32} if strategy == "group" else {}
    return {"type": type_, "symmetric": True, "strategy": strategy, **group, **others}


def inputs(type_: str = "int8", strategy: str = "tensor", **others: Any) -> dict[str, Any]:
    return {"type": type_, "symmetric": True, "strategy": strategy, **others}


def test_every_combination_is_legal_or_refused_as_the_table_says() -> None:
    model = nn.ModuleDict({name: nn.Linear(64, 8).to(dtype) for name, dtype in DTYPES.items()})
    expected = legal()
    met = 0
    for act, type_, algorithm, strategy in itertools.product(
        INPUTS, WEIGHTS, ALGORITHMS, ("tensor", "channel", "group")
    ):
        for way in (None,) if act is None else ("tensor", "token", "group"):
            given = config(
                weights(type_, strategy),
                None if act is None else inputs(act, str(way)),
                {algorithm: OPTIONS.get(algorithm, {})},
            )
            dtypes = expected.get((act, type_, algorithm, strategy, way))
            if dtypes is None:
                with pytest.raises(ValueError):
                    select(model, parse_config(given))
                continue
            met += 1
            chosen = select(model, parse_config(given))
            assert {DTYPES[layer.name] for layer in chosen.planned} == dtypes
            assert all(layer.by_dtype for layer in chosen.left)
            everything = select(model, parse_config(given), any_dtype=True)
            assert len(everything.planned) == 3
    assert met == len(expected)


@pytest.mark.parametrize("type_", ["int8", "int4"])
def test_asymmetric_weights_are_for_weight_only_integers(type_: str) -> None:
    asymmetric = weights(type_, symmetric=False)
    for algorithm in ("minmax", "gptq"):
        parse_and_select(config(asymmetric, algorithm=algorithm))
    with pytest.raises(ValueError, match=r"weights.symmetric is False; allowed: True for int8/"):
        parse_and_select(config(asymmetric, inputs()))
    with pytest.raises(ValueError, match="symmetric is False; allowed: True for hifloat8"):
        parse_config(config(weights("hifloat8", symmetric=False)))


def parse_and_select(given: dict[str, Any]) -> None:
    select(nn.Sequential(nn.Linear(64, 8).half()), parse_config(given))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_num": 0}, "batch_num is 0"),
        ({"batch_num": True}, "batch_num is True"),
        ({"batch_num": "2"}, "batch_num"),
        ({"bathc_num": 1}, "bathc_num is an unknown key"),
        ({"quant_cfg": None}, "quant_cfg is None"),
        ({"quant_cfg": {}}, r"quant_cfg is \{\}; allowed: one with weights"),
        ({"quant_cfg": {"inputs": inputs()}}, "one with weights or kvcache"),
        ({"quant_cfg": {"weights": []}}, "quant_cfg.weights"),
        ({"quant_cfg": {"weights": {"type": "int8"}}}, "symmetric is missing"),
        ({"quant_cfg": {"weights": weights("int5")}}, "type is 'int5'; allowed: int8, int4"),
        ({"quant_cfg": {"weights": weights("hifloat4")}}, "type is 'hifloat4'"),
        ({"quant_cfg": {"weights": weights(symmetric=1)}}, "symmetric is 1"),
        ({"quant_cfg": {"weights": weights(strategy="row")}}, "strategy is 'row'"),
        ({"quant_cfg": {"weights": weights(group_size=32)}}, "group_size is 32; allowed: no such"),
        (
            {"quant_cfg": {"weights": {"type": "int8", "symmetric": True, "strategy": "group"}}},
            "group_size is missing",
        ),
        ({"quant_cfg": {"weights": weights("int8", "group") | {"group_size": 48}}}, "is 48"),
        ({"quant_cfg": {"weights": weights("int8", "group") | {"group_size": 16}}}, "is 16"),
        ({"quant_cfg": {"weights": weights("int8", "group") | {"group_size": 0}}}, "is 0"),
        ({"quant_cfg": {"weights": weights("mxfp4_e2m1", "group") | {"group_size": 64}}}, "is 64"),
        ({"quant_cfg": {"weights": weights("float4_e2m1", "group") | {"group_size": 96}}}, "is 96"),
        ({"quant_cfg": {"weights": weights("hifloat8", "group")}}, "strategy is 'group'"),
        ({"quant_cfg": {"weights": weights(), "inputs": {"symmetric": True}}}, "type is missing"),
        ({"quant_cfg": {"weights": weights(), "inputs": inputs("mxfp4_e2m1")}}, "inputs.type"),
        ({"quant_cfg": {"weights": weights(), "inputs": inputs(dynamic=True)}}, "dynamic is True"),
        ({"quant_cfg": {"weights": weights(), "inputs": inputs(dynamic=False)}}, "dynamic"),
        (
            {"quant_cfg": {"weights": weights(), "inputs": inputs(strategy="token", symmetric=0)}},
            "symmetric is 0",
        ),
        (
            {
                "quant_cfg": {
                    "weights": weights(),
                    "inputs": inputs(strategy="token") | {"symmetric": False},
                }
            },
            "symmetric is False; allowed: True, unless type is int8 and strategy tensor",
        ),
        (
            {"quant_cfg": {"weights": weights(), "inputs": inputs("mxfp8_e4m3fn")}},
            "strategy is 'tensor'; allowed: group for mxfp8",
        ),
        ({"quant_cfg": {"weights": weights(), "q_proj.weights": weights()}}, "quant_cfg key"),
        ({"quant_cfg": {"weights": weights(), "*q_proj": weights()}}, "quant_cfg key"),
        ({"quant_cfg": {"weights": weights(), "*q.inputs": inputs("int9")}}, r"\*q.inputs.type"),
        ({"quant_cfg": {"kvcache": inputs("int8")}, "algorithm": "quantile"}, "kvcache.type"),
        (
            {"quant_cfg": {"kvcache": inputs("hifloat8") | {"symmetric": False}}},
            "kvcache.symmetric is False; allowed: True",
        ),
        ({"quant_cfg": {"kvcache": inputs("hifloat8")}}, "quantile, for a key-value cache"),
        (
            {"quant_cfg": {"weights": weights(), "*attn.kvcache": inputs("hifloat8")}},
            "quantile, for a key-value cache",
        ),
        ({"quant_cfg": {"kvcache": {"enable_quant": False}}}, "one with weights or kvcache"),
        ({"algorithm": {}}, "algorithm is {}"),
        ({"algorithm": None}, "algorithm is None"),
        ({"algorithm": "awq"}, "grids_num is missing"),
        ({"algorithm": {"awq"}}, "grids_num is missing"),
        ({"algorithm": {"awq": {"grids_num": 0}}}, "grids_num is 0"),
        ({"algorithm": {"smoothquant"}}, "smooth_strength is missing"),
        *(
            ({"algorithm": {"smoothquant": {"smooth_strength": value}}}, "smooth_strength")
            for value in (1, 0, 1.0, "0.5", float("nan"))
        ),
        (
            {"algorithm": {"minmax": {"x": 1}}},
            r"algorithm.minmax is \{'x': 1\}; allowed: no options",
        ),
        ({"algorithm": {"awq": 5}}, "algorithm.awq is 5"),
        ({"quant_cfg": {1: weights()}}, "quant_cfg key is 1"),
        ({"algorithm": "magic"}, "algorithm is 'magic'; allowed: minmax"),
        ({"algorithm": {"minmax", "gptq"}}, "gptq and minmax; allowed: one that takes Linear"),
        ({"skip_layers": [1]}, "skip_layers is 1"),
        ({"skip_layers": 5}, "skip_layers is 5"),
        ({"skip_layers": [""]}, "skip_layers is ''"),
    ],
)
def test_every_fault_is_a_value_error_that_says_what_is_allowed(
    change: dict[str, Any], message: str
) -> None:
    model = nn.Sequential(nn.Linear(64, 8).half())
    with pytest.raises(ValueError, match=message):
        quantize(model, config() | change)
    assert type(model[0]) is nn.Linear


def test_all_problems_are_told_at_once() -> None:
    bad = config(weights("int5"), inputs(dynamic=1), {"awq": {}}, batch_num=0, skip_layers=[2])
    with pytest.raises(ValueError, match="5 problems") as caught:
        parse_config(bad)
    for word in ("batch_num", "weights.type", "inputs.dynamic", "grids_num", "skip_layers"):
        assert word in str(caught.value)


def test_wrong_arguments_are_type_errors() -> None:
    with pytest.raises(TypeError, match="model must be Module"):
        quantize(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="config must be dict or None"):
        quantize(nn.Sequential(), "minmax")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="target is 'tpu'; allowed: portable, npu"):
        quantize(nn.Sequential(), target="tpu")  # type: ignore[arg-type]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(64, 64)
        self.down_proj = nn.Linear(64, 64)


def net() -> nn.Module:
    model = nn.Module()
    model.layers = nn.ModuleList([Block(), Block()])
    model.lm_head = nn.Linear(64, 64)
    return model.half()


def chosen(given: dict[str, Any]) -> dict[str, tuple[str | None, str | None]]:
    selection = select(net(), parse_config(given))
    return {layer.name: layer.config.pair for layer in selection.planned}


def test_patterns_replace_a_section_of_the_layers_they_match() -> None:
    given = config(
        weights(),
        inputs(),
        more={
            "*down_proj.weights": weights("int4", "tensor"),
            "*1.q_proj.inputs": {"enable_quant": False},
            "*down_proj.w*.weights": weights("int4"),
        },
    )
    assert chosen(given) == {
        "layers.0.q_proj": ("int8", "int8"),
        "layers.0.down_proj": ("int8", "int4"),
        "layers.1.q_proj": (None, "int8"),
        "layers.1.down_proj": ("int8", "int4"),
        "lm_head": ("int8", "int8"),
    }
    first = select(net(), parse_config(given)).planned[1]
    assert first.quant_config["weights_cfg"] == {
        "quant_type": "int4",
        "symmetric": True,
        "strategy": "tensor",
    }


def test_the_first_pattern_that_matches_wins_and_case_counts() -> None:
    given = {
        "quant_cfg": {
            "layers.*.Q_proj.weights": weights("int4"),
            "layers.[0]*.weights": weights("int4", "group"),
            "*proj.weights": weights("int8", "tensor"),
        },
        "algorithm": "minmax",
    }
    selection = select(net(), parse_config(given))
    found = {p.name: p.config.weights["strategy"] for p in selection.planned if p.config.weights}
    # Without a section for all, what no pattern matches stays float.
    assert found == {
        "layers.0.q_proj": "group",
        "layers.0.down_proj": "group",
        "layers.1.q_proj": "tensor",
        "layers.1.down_proj": "tensor",
    }
    reasons = {layer.name: layer.reason for layer in selection.left}
    assert reasons == {"lm_head": "no entry of quant_cfg is for it"}


def test_a_pattern_that_makes_an_illegal_pair_is_refused_with_its_layer() -> None:
    given = config(weights(), inputs(), more={"*1.q_proj.weights": weights("hifloat8")})
    model = net()
    with pytest.raises(ValueError, match=r"int8/hifloat8.*\(layer layers.1.q_proj\)"):
        quantize(model, given)
    assert not any("Quant" in type(module).__name__ for module in model.modules())


def test_unused_patterns_and_doubly_named_layers_are_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = config(
        more={"*up_proj.weights": weights(), "lm_*.weights": weights()}, skip_layers=["lm_head"]
    )
    with caplog.at_level(logging.WARNING):
        quantize(model := net(), given)
    assert "'*up_proj.weights' of quant_cfg matches no layer" in caplog.text
    assert "lm_head matches a pattern and skip_layers" in caplog.text
    assert type(model.lm_head) is nn.Linear


def test_skip_layers_that_skip_nothing_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    given = config(skip_layers=["q_prj", "q_proj"])
    with caplog.at_level(logging.WARNING):
        quantize(net(), given)
    assert caplog.messages == ["the entry 'q_prj' of skip_layers is part of no layer's name"]
    caplog.clear()
    # Every preset names lm_head.
    with caplog.at_level(logging.WARNING):
        quantize(nn.Sequential(nn.Linear(32, 32)).bfloat16(), None)
    assert caplog.messages == []


@pytest.mark.parametrize("skip_layers", ["lm_head", ["lm_head"], {"lm_head"}, ("lm_head",)])
def test_one_string_skips_one_layer(skip_layers: Any) -> None:
    model = net()
    quantize(model, config(skip_layers=skip_layers))
    report = {entry.name: entry for entry in quantization_report(model)}
    assert [name for name, entry in report.items() if entry.action == "float"] == ["lm_head"]
    assert report["lm_head"].reason == "skip_layers has 'lm_head'"
    assert {entry.action for name, entry in report.items() if name != "lm_head"} == {"calibrating"}


def test_a_part_of_a_name_skips_every_layer_that_has_it() -> None:
    assert set(chosen(config(skip_layers=["layers.1", "down"]))) == {"layers.0.q_proj", "lm_head"}


def test_presets_are_what_the_chapter_lists_and_stay_so() -> None:
    listed = """
    INT8_MINMAX_WEIGHT_QUANT_CFG | int8 channel | - | minmax | lm_head
    INT4_AWQ_WEIGHT_QUANT_CFG | int4 channel | - | awq 20 | lm_head
    INT4_GPTQ_WEIGHT_QUANT_CFG | int4 channel | - | gptq | lm_head
    MXFP4_AWQ_WEIGHT_QUANT_CFG | mxfp4_e2m1 group 32 | - | awq 20 | lm_head
    INT8_SMOOTHQUANT_CFG | int8 channel | int8 tensor | smoothquant 0.5 | lm_head
    HIFP8_OFMR_CFG | hifloat8 tensor | hifloat8 tensor | ofmr |
    FP8_OFMR_CFG | float8_e4m3fn tensor | float8_e4m3fn tensor | ofmr | lm_head
    MXFP8_QUANT_CFG | mxfp8_e4m3fn group 32 | mxfp8_e4m3fn group | mxquant | lm_head
    HIFP8_CAST_CFG | hifloat8 channel | hifloat8 tensor | cast | lm_head
    HIFP8_QUANTILE_CFG | hifloat8 tensor | hifloat8 tensor | quantile | lm_head
    HIFP8_SMOOTHQUANT_CFG | hifloat8 channel | hifloat8 tensor | smoothquant 0.5 | lm_head
    HIFP8_KVCACHE_CFG | - | - | quantile |
    """
    before = copy.deepcopy(PRESETS)
    names = []
    for line in listed.strip().splitlines():
        name, section, given_inputs, algorithm, skipped = (p.strip() for p in line.split("|"))
        names.append(name)
        preset = PRESETS[name]
        assert ("batch_num" in preset) == (name != "HIFP8_CAST_CFG")
        parsed = parse_config(preset)
        assert parsed.batch_num == 1
        held = parsed.everywhere.weights
        words = (
            [str(held[k]) for k in ("type", "strategy", "group_size") if k in held]
            if held
            else ["-"]
        )
        assert " ".join(words) == section
        acts = parsed.everywhere.inputs
        assert (f"{acts['type']} {acts['strategy']}" if acts else "-") == given_inputs
        (found, options), *_ = parsed.algorithms.items()
        assert " ".join([found, *map(str, (options or {}).values())]) == algorithm
        assert " ".join(parsed.skip_layers) == skipped
        model = nn.Sequential(nn.Linear(64, 64, bias=False).bfloat16())
        quantize(model, preset)
        taken = type(model[0]) is not nn.Linear
        assert taken == (name != "HIFP8_KVCACHE_CFG")
    assert sorted(names) == sorted(PRESETS)
    assert before == PRESETS


def test_the_npu_target_adds_the_size_rules_of_its_operators() -> None:
    def reason(given: dict[str, Any], layer: nn.Module, target: Any = "npu") -> str:
        selection = select(nn.Sequential(layer), parse_config(given), target=target)
        return selection.left[0].reason if selection.left else ""

    int4 = config(weights("int4"))
    assert "multiple of [8, 8]" in reason(int4, nn.Linear(64, 12))
    assert reason(int4, nn.Linear(64, 12), "portable") == ""
    assert reason(int4, nn.Linear(64, 16)) == ""
    mxfp4 = config(weights("mxfp4_e2m1", "group"), algorithm="mxquant")
    assert "multiple of [64, 64]" in reason(mxfp4, nn.Linear(96, 64).half())
    mxfp8 = config(weights("mxfp8_e4m3fn", "group"), inputs("mxfp8_e4m3fn", "group"), "mxquant")
    assert "odd number of blocks" in reason(mxfp8, nn.Linear(96, 8).bfloat16())
    assert reason(mxfp8, nn.Linear(64, 8).bfloat16()) == ""
    pair = config(weights("float4_e2m1", "group"), inputs("float8_e4m3fn"))
    assert "has a bias" in reason(pair, nn.Linear(64, 8).bfloat16())
    assert reason(pair, nn.Linear(64, 8, bias=False).bfloat16()) == ""
    with torch.device("meta"):
        wide = nn.Linear(65536, 8, dtype=F16)
    assert "above 65535" in reason(config(), wide)
    assert reason(config(), wide, "portable") == ""
    # The arithmetic itself needs groups smaller than the row, whatever the target.
    for target in ("npu", "portable"):
        grouped = config(weights("int4", "group") | {"group_size": 64})
        assert "64 is not smaller than the 64" in reason(grouped, nn.Linear(64, 16), target)


def test_a_float32_model_and_a_preset_for_half_floats_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
    with caplog.at_level(logging.WARNING):
        quantize(model)
    assert "nothing was quantised: the weight is float32" in caplog.text
    assert "takes float16, bfloat16 (2 layers)" in caplog.text
    assert "model.to(torch.bfloat16)" in caplog.text
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert {entry.action for entry in quantization_report(model)} == {"float"}
    caplog.clear()
    quantize(model, any_dtype=True)
    assert not caplog.records
    assert type(model[0]).__name__ == "MinMaxQuant"
    with caplog.at_level(logging.WARNING):
        quantize(nn.Sequential(nn.ReLU()))
    assert "no layer that the algorithm takes" in caplog.text
