from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from config_layers import LAYERS, Facts

from workbench.engine.errors import WorkbenchError
from workbench.engine.files.config import (
    QuantConfig,
    default_config,
    parse_config,
    read_config,
    require_enabled,
)

EXAMPLE = """{
    "version":1, "batch_num":4, "activation_offset":true, "do_fusion":true,
    "skip_fusion_layers":["stem.conv"],
    "head.fc":{
        "quant_enable":true,
        "activation_quant_params":{"num_bits":8,"act_algo":"hfmg","asymmetric":true,
            "num_of_bins":2048},
        "weight_quant_params":{"num_bits":8,"channel_wise":false,"wts_algo":"arq_quantize"}
    },
    "stem.conv":{
        "quant_enable":true,
        "dmq_balancer_param":0.5,
        "activation_quant_params":{"num_bits":8,"max_percentile":0.9999,"min_percentile":0.9999,
            "search_range":[0.8,1.2],"search_step":0.02,"act_algo":"ifmr","asymmetric":false},
        "weight_quant_params":{"num_bits":8,"channel_wise":true,"wts_algo":"arq_quantize"}
    }
}"""


def parse(entry: dict[str, Any], name: str = "stem.conv", **top: Any) -> QuantConfig:
    text = json.dumps({**top, name: {"quant_enable": True, **entry}})
    return parse_config(text, source="c.json", layers=LAYERS)


def test_the_example_keeps_its_order_and_values() -> None:
    config = parse_config(EXAMPLE, source="c.json", layers=LAYERS)
    # json.loads keeps key order, so equal dumps mean equal order.
    assert json.dumps(json.loads(config.to_json())) == json.dumps(json.loads(EXAMPLE))
    again = parse_config(config.to_json(), source="again", layers=LAYERS)
    assert again == config
    assert again.digest() == config.digest()


def test_default_file_is_written_as_the_format_says() -> None:
    layers = {"b": Facts("b", "Linear"), "a": Facts("a", "Conv2d")}
    text = default_config(layers, skip_layers=["b"], batch_num=2).to_json()
    assert (
        text
        == """{
    "version":1,
    "batch_num":2,
    "activation_offset":true,
    "do_fusion":true,
    "skip_fusion_layers":[],
    "a":{
        "quant_enable":true,
        "activation_quant_params":{
            "num_bits":8,
            "max_percentile":0.999999,
            "min_percentile":0.999999,
            "search_range":[
                0.7,
                1.3
            ],
            "search_step":0.01,
            "act_algo":"ifmr",
            "asymmetric":true
        },
        "weight_quant_params":{
            "num_bits":8,
            "channel_wise":true,
            "wts_algo":"arq_quantize"
        }
    },
    "b":{
        "quant_enable":false,
        "activation_quant_params":{
            "num_bits":8,
            "max_percentile":0.999999,
            "min_percentile":0.999999,
            "search_range":[
                0.7,
                1.3
            ],
            "search_step":0.01,
            "act_algo":"ifmr",
            "asymmetric":true
        },
        "weight_quant_params":{
            "num_bits":8,
            "channel_wise":false,
            "wts_algo":"arq_quantize"
        }
    }
}"""
    )


def test_default_config_covers_the_eligible_layers() -> None:
    config = default_config(LAYERS)
    assert set(config.layers) == set(LAYERS) - {"reused"}
    assert config.layers["vol"].activation.asymmetric is False
    assert not default_config(LAYERS, activation_offset=False).asymmetric("stem.conv")
    assert parse_config(config.to_json(), source="x", layers=LAYERS).to_json() == config.to_json()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"skip_layers": ["nope"]}, "nope"),
        ({"skip_layers": ["up", "up"]}, "twice"),
        ({"skip_layers": [n for n in LAYERS if n != "reused"]}, "every layer"),
        ({"batch_num": 0}, "batch_num"),
    ],
)
def test_wrong_arguments_of_a_new_config(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        default_config(LAYERS, **arguments)


def test_no_layer_and_a_layer_named_like_a_global_key() -> None:
    with pytest.raises(ValueError, match="called 2 times"):
        default_config({"reused": LAYERS["reused"]})


def test_a_layer_that_stays_float_anyway_may_be_skipped() -> None:
    config = default_config(LAYERS, skip_layers=["reused", "up"])
    assert "reused" not in config.layers
    assert not config.layers["up"].quant_enable
    with pytest.raises(ValueError, match="global key"):
        default_config({"version": Facts("version", "Linear")})


A, W = "activation_quant_params", "weight_quant_params"
ADA = {"wts_algo": "ada_quantize"}
GOOD: list[tuple[str, dict[str, Any]]] = [
    ("stem.conv", {A: {"num_bits": 16}}),
    ("head.fc", {A: {"num_bits": 16}}),
    ("up", {A: {"num_bits": 16}}),
    ("stem.conv", {A: {"max_percentile": 1, "min_percentile": 0.500001}}),
    ("stem.conv", {A: {"search_range": [0.7, 1.3], "search_step": 0.6}}),
    ("stem.conv", {A: {"num_of_bins": 1024}}),
    ("stem.conv", {W: {"num_bits": 6}}),
    ("stem.conv", {W: {"num_bits": 4}}),
    ("head.fc", {W: {"num_bits": 4}}),
    ("stem.conv", {W: {**ADA, "num_iteration": 0, "beta_range": [20, 2], "warm_start": 0.99}}),
    ("vol", {"dmq_balancer_param": 0.2}),
    ("vol", {A: {"asymmetric": False}}),
    ("pool", {W: {"channel_wise": False}}),
]


@pytest.mark.parametrize(("name", "entry"), GOOD)
def test_allowed(name: str, entry: dict[str, Any]) -> None:
    config = parse(entry, name)
    assert config.enabled() == (name,)
    assert parse_config(config.to_json(), source="again", layers=LAYERS) == config


BAD_VALUES: list[tuple[str, dict[str, Any], str]] = [
    ("stem.conv", {A: {"num_bits": 6}}, "num_bits"),
    ("stem.conv", {A: {"max_percentile": 0.5}}, "max_percentile"),
    ("stem.conv", {A: {"min_percentile": 1.01}}, "min_percentile"),
    ("stem.conv", {A: {"search_range": [0, 1.3]}}, "search_range"),
    ("stem.conv", {A: {"search_range": [1.3, 1.3]}}, "search_range"),
    ("stem.conv", {A: {"search_range": [0.7, 1, 1.3]}}, "search_range"),
    ("stem.conv", {A: {"search_step": 0}}, "search_step"),
    ("stem.conv", {A: {"search_step": 0.600001}}, "search_step"),
    ("stem.conv", {A: {"act_algo": "max"}}, "act_algo"),
    ("stem.conv", {A: {"num_of_bins": 1000}}, "num_of_bins"),
    ("stem.conv", {A: {"num_of_bins": 2048, "search_step": 0.1}}, "search_step"),
    ("stem.conv", {A: {"act_algo": "hfmg", "max_percentile": 0.9}}, "max_percentile"),
    ("stem.conv", {A: {"act_algo": "ifmr", "num_of_bins": 2048}}, "num_of_bins"),
    ("stem.conv", {W: {"num_bits": 5}}, "num_bits"),
    ("stem.conv", {W: {"reg_param": 0.5}}, "reg_param"),
    ("stem.conv", {W: {**ADA, "reg_param": 1}}, "reg_param"),
    ("stem.conv", {W: {**ADA, "warm_start": 0}}, "warm_start"),
    ("stem.conv", {W: {**ADA, "num_iteration": -1}}, "num_iteration"),
    ("stem.conv", {W: {**ADA, "beta_range": [2, 20]}}, "beta_range"),
    ("stem.conv", {W: {"wts_algo": "nearest"}}, "wts_algo"),
    ("stem.conv", {"dmq_balancer_param": 0.19}, "dmq_balancer_param"),
    ("stem.conv", {"colour": 1}, "colour"),
    ("stem.conv", {A: {"colour": 1}}, "colour"),
    ("head.fc", {W: {"num_bits": 6}}, "Conv2d only"),
    ("up", {W: {"num_bits": 7}}, "Conv2d only"),
    ("odd", {W: {"num_bits": 4}}, "even"),
    ("grouped", {W: {"num_bits": 4}}, "groups"),
    ("head.fc", {W: {"channel_wise": True}}, "channel_wise"),
    ("pool", {W: {"channel_wise": True}}, "channel_wise"),
    ("pool", {W: ADA}, "wts_algo"),
    ("pool", {"dmq_balancer_param": 0.5}, "dmq_balancer_param"),
    ("pool", {A: {"num_bits": 16}}, "num_bits"),
    ("nobias", {A: {"num_bits": 16}}, "bias"),
    ("vol", {A: {"asymmetric": True}}, "asymmetric"),
    ("reused", {}, "called 2 times"),
    ("stem.conf", {}, "stem.conv"),
]


@pytest.mark.parametrize(("name", "entry", "words"), BAD_VALUES)
def test_wrong_values(name: str, entry: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse(entry, name)
    assert isinstance(caught.value, WorkbenchError)
    assert not isinstance(caught.value, TypeError)
    assert str(caught.value).endswith(f"(layer {name})")


BAD_TYPES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"quant_enable": 1}, {}),
    ({"dmq_balancer_param": 1}, {}),
    ({A: {"num_bits": 8.0}}, {}),
    ({A: {"num_bits": True}}, {}),
    ({A: {"asymmetric": 0}}, {}),
    ({A: {"search_step": "0.1"}}, {}),
    ({A: {"search_range": 0.7}}, {}),
    ({A: []}, {}),
    ({W: {"channel_wise": "true"}}, {}),
    ({}, {"batch_num": "1"}),
    ({}, {"activation_offset": 1}),
    ({}, {"skip_fusion_layers": "stem.conv"}),
]


@pytest.mark.parametrize(("entry", "top"), BAD_TYPES)
def test_wrong_types(entry: dict[str, Any], top: dict[str, Any]) -> None:
    with pytest.raises(TypeError) as caught:
        parse(entry, **top)
    assert isinstance(caught.value, WorkbenchError)
    assert not isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "top",
    [
        {"version": 2},
        {"batch_num": 0},
        {"fakequant_precision_mode": "FP16"},
        {"skip_fusion_layers": ["head.fc"]},
        {"skip_fusion_layers": ["nope"]},
        {"skip_fusion_layers": ["stem.conv", "stem.conv"]},
    ],
)
def test_wrong_global_values(top: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(top))):
        parse({}, **top)


def test_all_problems_come_in_one_error_that_survives_pickling() -> None:
    text = json.dumps(
        {
            "batch_num": "1",
            "stem.conv": {"quant_enable": True, A: {"num_bits": 5}},
            "nope": {"quant_enable": True},
        }
    )
    with pytest.raises(ValueError) as caught:
        parse_config(text, source="c.json", layers=LAYERS)
    assert isinstance(caught.value, TypeError)
    assert "c.json" in str(caught.value)
    problems = caught.value.problems  # type: ignore[attr-defined]
    assert [(p.layer, p.key) for p in problems] == [
        ("", "batch_num"),
        ("stem.conv", f"{A}.num_bits"),
        ("nope", "the name"),
    ]
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    assert copy.problems == problems


@pytest.mark.parametrize(
    "text",
    ['{"batch_num":1,"batch_num":2}', '{"a":{"quant_enable":true,"quant_enable":true}}'],
)
def test_repeated_keys_at_any_depth(text: str) -> None:
    with pytest.raises(ValueError, match="more than once"):
        parse_config(text, source="c", layers=None)


@pytest.mark.parametrize("text", ["{", '{"a": NaN}', ""])
def test_text_that_is_not_json(text: str) -> None:
    with pytest.raises(json.JSONDecodeError) as caught:
        parse_config(text, source="c.json", layers=None)
    assert isinstance(caught.value, WorkbenchError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_defaults_of_what_is_missing() -> None:
    config = parse_config(
        '{"stem.conv":{"quant_enable":true},"head.fc":{},"pool":{},"vol":{}}',
        source="c",
        layers=LAYERS,
    )
    assert config.enabled() == ("stem.conv",)
    conv, fc, pool = (config.layers[n] for n in ("stem.conv", "head.fc", "pool"))
    assert conv.weight is not None
    assert conv.weight.channel_wise
    assert fc.weight is not None
    assert not fc.weight.channel_wise
    assert pool.weight is None
    assert config.asymmetric("stem.conv")
    assert not config.asymmetric("vol")


def test_enabling() -> None:
    config = default_config(LAYERS).with_enabled({"up": False})
    assert "up" not in config.enabled()
    with pytest.raises(ValueError):
        config.with_enabled({"nope": True})
    with pytest.raises(RuntimeError):
        require_enabled(config.with_enabled(dict.fromkeys(config.layers, False)))


def test_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_config(tmp_path / "none.json")
    path = tmp_path / "c.json"
    path.write_text(EXAMPLE)
    assert read_config(path, LAYERS).batch_num == 4
    path.write_bytes(b"\xff{}")
    with pytest.raises(ValueError, match="UTF-8"):
        read_config(path)
