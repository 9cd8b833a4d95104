"""JSON and text configuration of quantisation-aware training (chapter 30 section 3)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from config_layers import Facts

from workbench.engine.files.problems import ConfigError
from workbench.engine.files.retrain_config import (
    RetrainConfig,
    default_retrain_config,
    parse_retrain_config,
)
from workbench.engine.files.retrain_resolution import resolve_retrain_config
from workbench.engine.files.retrain_text import parse_retrain_text_config
from workbench.engine.files.text_message import TextConfigError

LAYERS = {
    facts.name: facts
    for facts in [
        Facts("stem.conv", "Conv2d"),
        Facts("odd", "Conv2d", in_channels=3),
        Facts("grouped", "Conv2d", groups=2),
        Facts("head", "Linear"),
        Facts("reused", "Conv2d", eligible=False, reason="it is called 2 times"),
    ]
}


def parse(data: Any) -> RetrainConfig:
    text = data if isinstance(data, str) else json.dumps(data)
    return parse_retrain_config(text, source="qat.json", layers=LAYERS)


def resolve(text: str, **options: bool) -> RetrainConfig:
    message = parse_retrain_text_config(text, source="qat.cfg")
    return resolve_retrain_config(message, LAYERS, source="qat.cfg", **options)


def test_default_config_is_that_of_the_chapter() -> None:
    config = default_retrain_config(LAYERS)
    text = config.to_json()
    assert text.startswith('{\n    "version":1,\n    "batch_num":1,\n    "stem.conv":{')
    data = json.loads(text)
    layer = {
        "retrain_enable": True,
        "retrain_data_config": {"algo": "ulq_quantize", "dst_type": "INT8"},
        "retrain_weight_config": {"algo": "arq_retrain", "channel_wise": True, "dst_type": "INT8"},
    }
    assert data["stem.conv"] == layer
    assert data["head"]["retrain_weight_config"]["channel_wise"] is False
    assert list(data) == ["version", "batch_num", "stem.conv", "odd", "grouped", "head"]
    assert parse(text) == config


def test_missing_keys_are_defaults() -> None:
    config = parse({"stem.conv": {}, "head": {}})
    assert (config.version, config.batch_num, config.fakequant_precision_mode) == (1, 1, "DEFAULT")
    assert config.enabled() == ("stem.conv", "head")
    assert config.layers["stem.conv"].weight.channel_wise
    assert not config.layers["head"].weight.channel_wise


def test_integral_clips_are_numbers() -> None:
    data = {"stem.conv": {"retrain_data_config": {"clip_max": 4, "clip_min": -4}}}
    assert parse(data).layers["stem.conv"].data.clip_max == 4.0


def layer(data: Any = None, weight: Any = None, name: str = "stem.conv", **more: Any) -> Any:
    entry = dict(more)
    if data is not None:
        entry["retrain_data_config"] = data
    if weight is not None:
        entry["retrain_weight_config"] = weight
    return {name: entry}


WRONG: list[tuple[Any, type[Exception], str]] = [
    ({"no.such": {}}, ValueError, "no.such"),
    ({"reused": {}}, ValueError, "called 2 times"),
    ('{"stem.conv":{},"stem.conv":{}}', ValueError, "more than once"),
    ({"stem.conv": 3}, ValueError, "an object"),
    (layer({"clip": 1.0}), ValueError, "retrain_data_config.clip "),
    (layer({"clip_max": 1.0}), ValueError, "only together with clip_min"),
    (layer({"clip_max": -1.0, "clip_min": -2.0}), ValueError, "above 0"),
    (layer({"clip_max": 1.0, "clip_min": 0.0}), ValueError, "below 0"),
    (layer({"algo": "ifmr"}), ValueError, "ulq_quantize"),
    (layer({"dst_type": "INT7"}), ValueError, "INT4, INT8, INT16"),
    (layer({"dst_type": "INT4"}), ValueError, "INT4 with weights of INT4"),
    (layer({"dst_type": "INT16"}, {"dst_type": "INT4"}), ValueError, "INT16 with weights of INT8"),
    (layer(None, {"algo": "arq_quantize"}), ValueError, "arq_retrain, ulq_retrain"),
    (layer(None, {"channel_wise": True}, name="head"), ValueError, "false for Linear"),
    (layer(None, {"dst_type": "INT4"}, name="odd"), ValueError, "even number of input channels"),
    (layer(regular_prune_enable=True), ValueError, "regular_prune_enable"),
    ({"stem.conv": {"retrain_enable": False}}, ValueError, "at least one layer"),
    ({"batch_num": 0, "stem.conv": {}}, ValueError, "batch_num"),
    ({"version": 2, "stem.conv": {}}, ValueError, "version"),
    ("{", ValueError, "qat.json"),
    ({"batch_num": True, "stem.conv": {}}, TypeError, "batch_num"),
    (layer({"fixed_min": 1}), TypeError, "fixed_min"),
    (layer({"dst_type": 8}), TypeError, "dst_type"),
    (layer(retrain_enable=1), TypeError, "retrain_enable"),
]


@pytest.mark.parametrize(("data", "error", "words"), WRONG, ids=lambda v: str(v)[:60])
def test_what_is_wrong_is_said(data: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        parse(data)


def test_all_problems_come_together() -> None:
    data = {"batch_num": 0, **layer({"algo": "x"}), "nothing": {}}
    with pytest.raises(ConfigError) as caught:
        parse(data)
    assert len(caught.value.problems) == 3


# --- the text configuration -------------------------------------------------------------------

GLOBAL = "retrain_data_quant_config { ulq_quantize { clip_max_min { clip_max: 5 clip_min: -5 } } }"
TYPE = (
    'override_layer_types { layer_type: "Conv2d" '
    "retrain_data_quant_config { ulq_quantize { fixed_min: true } } }"
)
LAYER = (
    'override_layer_configs { layer_name: "stem.conv" '
    "retrain_weight_quant_config { ulq_retrain { channel_wise: false } } }"
)
SKIP = 'quant_skip_layers: "stem.conv"'

# given -> (enabled, clip_max, fixed_min, weight algorithm) of stem.conv: field by field here ...
BY_FIELD = {
    (): (True, None, None, "arq_retrain"),
    (GLOBAL,): (True, 5.0, None, "arq_retrain"),
    (GLOBAL, TYPE): (True, 5.0, True, "arq_retrain"),
    (GLOBAL, LAYER): (True, 5.0, None, "ulq_retrain"),
    (GLOBAL, TYPE, LAYER): (True, 5.0, True, "ulq_retrain"),
    (GLOBAL, SKIP): (False, 5.0, None, "arq_retrain"),
    (GLOBAL, SKIP, TYPE): (False, 5.0, True, "arq_retrain"),
    (GLOBAL, SKIP, LAYER): (True, 5.0, None, "ulq_retrain"),
    (GLOBAL, SKIP, TYPE, LAYER): (True, 5.0, True, "ulq_retrain"),
}
# ... and with compat one source alone decides, and an override always enables.
ONE_SOURCE = {
    (): (True, None, None, "arq_retrain"),
    (GLOBAL,): (True, 5.0, None, "arq_retrain"),
    (GLOBAL, TYPE): (True, None, True, "arq_retrain"),
    (GLOBAL, LAYER): (True, None, None, "ulq_retrain"),
    (GLOBAL, TYPE, LAYER): (True, None, None, "ulq_retrain"),
    (GLOBAL, SKIP): (False, 5.0, None, "arq_retrain"),
    (GLOBAL, SKIP, TYPE): (True, None, True, "arq_retrain"),
    (GLOBAL, SKIP, LAYER): (True, None, None, "ulq_retrain"),
    (GLOBAL, SKIP, TYPE, LAYER): (True, None, None, "ulq_retrain"),
}


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("given", BY_FIELD, ids=lambda blocks: str(len(blocks)))
def test_precedence(given: tuple[str, ...], compat: bool) -> None:
    entry = resolve("\n".join(given), compat=compat).layers["stem.conv"]
    found = (entry.retrain_enable, entry.data.clip_max, entry.data.fixed_min, entry.weight.algo)
    assert found == (ONE_SOURCE if compat else BY_FIELD)[given]


PRUNE = "prune_config { filter_pruner { balanced_l2_norm_filter_prune { prune_ratio: 0.5 } } }"
PRUNE_LAYER = f'override_layer_configs {{ layer_name: "head" {PRUNE} }}'


@pytest.mark.parametrize(
    ("given", "enabled"),
    [
        ((GLOBAL, PRUNE), ("stem.conv", "odd", "grouped", "head")),
        ((GLOBAL, PRUNE, SKIP), ("odd", "grouped", "head")),
        ((PRUNE,), ()),
        ((LAYER, PRUNE), ("stem.conv",)),
        ((TYPE, PRUNE), ("stem.conv", "odd", "grouped")),
        ((PRUNE_LAYER,), ()),
        ((GLOBAL, PRUNE_LAYER, 'skip_layers: "head"'), ("stem.conv", "odd", "grouped")),
        ((GLOBAL, PRUNE, 'skip_layer_types: "ConvTranspose3d"'), tuple(LAYERS)[:4]),
    ],
    ids=str,
)
def test_combined_compression_quantises(given: tuple[str, ...], enabled: tuple[str, ...]) -> None:
    assert resolve("\n".join(given), combined=True).enabled() == enabled


WRONG_TEXT = [
    ('skip_layers: "none"', "none"),
    ('skip_layer_types: "AvgPool2d"', "AvgPool2d"),
    (PRUNE, "prune_config is given"),
    ('regular_prune_skip_layers: "head"', "regular_prune_skip_layers"),
    (PRUNE_LAYER, "override_layer_configs.prune_config"),
    (f'override_layer_types {{ layer_type: "Linear" {PRUNE} }}', "override_layer_types.prune"),
    (LAYER + LAYER, "2 times"),
    (LAYER.replace("stem.conv", "reused"), "called 2 times"),
    (TYPE.replace("Conv2d", "Pool"), "'Pool'"),
    (GLOBAL.replace("clip_min: -5", ""), "clip_min is missing"),
    (GLOBAL.replace("clip_min: -5", "clip_min: 1"), "below 0"),
    ("retrain_data_quant_config { ulq_quantize { dst_type: INT4 } }", "INT8, INT16"),
    ("retrain_weight_quant_config { arq_retrain { dst_type: INT16 } }", "INT4, INT8"),
    (
        "retrain_data_quant_config { ulq_quantize { dst_type: INT16 } }"
        "retrain_weight_quant_config { arq_retrain { dst_type: INT4 } }",
        "INT16 with weights of INT8",
    ),
    ("batch_num: 0", "batch_num"),
    ('skip_layer_types: ["Conv2d", "Linear"]', "at least one layer"),
    (
        'override_layer_configs { layer_name: "head" '
        "retrain_weight_quant_config { arq_retrain { channel_wise: true } } }",
        "false for Linear",
    ),
]


@pytest.mark.parametrize(("text", "words"), WRONG_TEXT, ids=lambda v: v[:50])
def test_what_is_wrong_in_a_text_config_is_said(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve(text)


def test_text_that_is_none_names_the_line() -> None:
    with pytest.raises(TextConfigError, match=r"qat\.cfg, line 2"):
        resolve("batch_num: 1\nbatch_sum: 2")


def test_channel_wise_for_all_is_false_for_linear(caplog: pytest.LogCaptureFixture) -> None:
    config = resolve("retrain_weight_quant_config { arq_retrain { channel_wise: true } }")
    assert not config.layers["head"].weight.channel_wise
    assert "head" in caplog.text


def test_int4_weights_fall_back_where_they_cannot_be(caplog: pytest.LogCaptureFixture) -> None:
    config = resolve("retrain_weight_quant_config { arq_retrain { dst_type: INT4 } }")
    types = {name: entry.weight.dst_type for name, entry in config.layers.items()}
    assert types == {"stem.conv": "INT4", "odd": "INT8", "grouped": "INT8", "head": "INT4"}
    assert "even number of input channels" in caplog.text


def test_short_clips_are_stored_short() -> None:
    text = GLOBAL.replace("5", "0.1")
    assert resolve(text).layers["head"].data.clip_max == 0.1


def test_an_override_of_a_skipped_layer_is_said(caplog: pytest.LogCaptureFixture) -> None:
    resolve(f"{SKIP} {LAYER}")
    assert "stem.conv is skipped and has an override" in caplog.text
