"""Chapter 25 sections 14 and 15: the JSON and text configuration of KV-cache calibration."""

import json

import pytest
from google.protobuf import text_format

from workbench.engine.files.kv_config import KVParams, default_kv_config, parse_kv_config
from workbench.engine.files.kv_text import parse_kv_text_config, read_kv_text_config
from workbench.engine.files.proto_schema import message_class

MODULES = {
    **{f"blk{i}.{k}_proj": "Linear" for i in (0, 1) for k in "qkv"},
    "blk0": "Block",
    "blk0.norm": "LayerNorm",
}

EXAMPLE = """{
    "batch_num":2,
    "activation_offset":true,
    "blk0.k_proj":{
        "kv_data_quant_config":{
            "act_algo":"ifmr",
            "max_percentile":0.999999,
            "min_percentile":0.999999,
            "search_range":[
                0.7,
                1.3
            ],
            "search_step":0.01,
            "quant_granularity":0
        }
    },
    "blk0.v_proj":{
        "kv_data_quant_config":{
            "act_algo":"hfmg",
            "num_of_bins":4096,
            "asymmetric":true,
            "quant_granularity":1
        }
    }
}"""

SAME_AS_TEXT = """
batch_num: 2
kv_cache_quant_config { quant_layers: "blk0.k_proj" }
override_layers_configs {
    layer_name: "blk0.v_proj"
    kv_data_quant_config { hfmg_quantize { quant_granularity: per_channel asymmetric: true } }
}
"""


def read(text, modules=MODULES):
    return parse_kv_config(text, source="kv.json", modules=modules)


def read_text_config(text):
    return parse_kv_text_config(text, source="kv.cfg", modules=MODULES)


def one(settings, name="blk0.k_proj"):
    return json.dumps({name: {"kv_data_quant_config": settings}})


def test_the_specifications_json_byte_for_byte():
    assert read_text_config(SAME_AS_TEXT).to_json() == EXAMPLE
    assert read(EXAMPLE).to_json() == EXAMPLE


def test_defaults_of_a_list_of_names():
    config = default_kv_config(["blk1.k_proj", "blk0.k_proj"], MODULES)
    assert list(config.layers) == ["blk1.k_proj", "blk0.k_proj"]
    assert (config.batch_num, config.activation_offset) == (1, True)
    assert set(config.layers.values()) == {KVParams()}


def test_field_numbers_on_the_wire():
    def field(number, payload):
        if isinstance(payload, int):
            return bytes([*varint(number << 3), payload])
        return bytes([*varint(number << 3 | 2), len(payload)]) + payload

    def varint(value):
        return [value] if value < 128 else [value & 127 | 128, value >> 7]

    def number(index, value):
        import struct

        return bytes([*varint(index << 3 | 5)]) + struct.pack("<f", value)

    ifmr = number(1, 0.5) + number(2, 2.0) + number(3, 0.25) + number(4, 0.75) + number(5, 0.625)
    ifmr += field(6, 1) + field(11, 1)
    hfmg = bytes([*varint(1 << 3), *varint(1024)]) + field(2, 0) + field(11, 1)
    wire = field(1, 3) + field(2, 0)
    wire += field(10, field(1, b"a") + field(2, field(1, ifmr)))
    wire += field(110, field(1, b"b") + field(2, field(2, hfmg)))
    message = message_class(
        "quant_cali_config.proto", "AMCTPytorchQuantCaliProto.AMCTQuantCaliConfig"
    )()
    message.ParseFromString(wire)
    assert message.SerializeToString() == wire
    assert (message.batch_num, message.activation_offset) == (3, False)
    found = message.kv_cache_quant_config.calibration_config.ifmr_quantize
    assert [
        found.search_range_start,
        found.search_range_end,
        found.search_step,
        found.max_percentile,
        found.min_percentile,
        found.asymmetric,
        found.quant_granularity,
    ] == [0.5, 2.0, 0.25, 0.75, 0.625, True, 1]
    other = message.override_layers_configs[0]
    assert other.layer_name == "b"
    assert other.kv_data_quant_config.hfmg_quantize.num_of_bins == 1024


def test_precedence_of_the_text_config():
    config = read_text_config("""
        activation_offset: false
        kv_cache_quant_config {
            quant_layers: "blk0.k_proj" quant_layers: "blk0.v_proj"
            calibration_config { ifmr_quantize { search_step: 0.02 asymmetric: true } }
        }
        override_layers_configs { layer_name: "blk0.v_proj" }
        override_layers_configs {
            layer_name: "blk1.k_proj"
            kv_data_quant_config { hfmg_quantize { num_of_bins: 8192 } }
        }
    """)
    assert config.layers["blk0.k_proj"] == KVParams(search_step=0.02, asymmetric=True)
    # An override without an algorithm means IFMR's defaults, not the common settings.
    assert config.layers["blk0.v_proj"] == KVParams()
    assert config.layers["blk1.k_proj"] == KVParams("hfmg", num_of_bins=8192)
    assert config.asymmetric("blk0.k_proj") and not config.asymmetric("blk1.k_proj")


def test_missing_keys_have_defaults():
    config = read('{"blk0.k_proj": {}, "blk1.k_proj": {"kv_data_quant_config": {}}}')
    assert list(config.layers.values()) == [KVParams(), KVParams()]
    assert read(one({"asymmetric": None})).layers["blk0.k_proj"].asymmetric is None


def test_other_modules_may_stand_in_the_file_per_tensor():
    text = one({"quant_granularity": 0}, "blk0.norm")[:-1] + ', "blk0.k_proj": {}}'
    assert set(read(text).layers) == {"blk0.norm", "blk0.k_proj"}


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"act_algo": "kl"}, ValueError, "ifmr, hfmg"),
        ({"act_algo": 1}, TypeError, "act_algo"),
        ({"max_percentile": 0.5}, ValueError, r"\(0.5, 1\]"),
        ({"min_percentile": 1.5}, ValueError, r"\(0.5, 1\]"),
        ({"search_range": [1.0, 1.0]}, ValueError, "0 < start < end"),
        ({"search_range": [0.7]}, ValueError, "search_range"),
        ({"search_step": 0.0}, ValueError, "search_step"),
        ({"search_step": 0.7}, ValueError, r"\(0, 0.6\]"),
        ({"num_of_bins": 4096}, ValueError, "only with act_algo hfmg"),
        ({"act_algo": "hfmg", "num_of_bins": 1000}, ValueError, "1024"),
        ({"act_algo": "hfmg", "search_step": 0.01}, ValueError, "only with act_algo ifmr"),
        ({"asymmetric": 1}, TypeError, "true, false"),
        ({"quant_granularity": 2}, ValueError, "0, 1"),
        ({"quant_granularity": "per_channel"}, TypeError, "whole number"),
        ({"num_bits": 8}, ValueError, "unknown key"),
        ([], TypeError, "an object"),
    ],
)
def test_wrong_settings(settings, error, says):
    with pytest.raises(error, match=says):
        read(one(settings))


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("{", ValueError, "kv.json"),
        ("[]", TypeError, "a JSON object"),
        ("{}", RuntimeError, "no layer"),
        ('{"blk0.norm": {}}', RuntimeError, "no layer"),
        ('{"blk0.k_pro": {}}', ValueError, "blk0.k_proj"),
        ('{"blk0.k_proj": {}, "blk0.k_proj": {}}', ValueError, "more than once"),
        ('{"batch_num": 0, "blk0.k_proj": {}}', ValueError, "above 0"),
        ('{"batch_num": 1.0, "blk0.k_proj": {}}', TypeError, "batch_num"),
        ('{"activation_offset": 1, "blk0.k_proj": {}}', TypeError, "true, false"),
        ('{"blk0.k_proj": 3}', TypeError, "an object"),
        ('{"blk0.k_proj": {"other": {}}}', ValueError, "unknown key"),
        (one({"quant_granularity": 1}, "blk0.norm"), ValueError, "0 for a LayerNorm"),
    ],
)
def test_wrong_files(text, error, says):
    with pytest.raises(error, match=says):
        read(text)


def test_all_problems_in_one_error():
    text = one({"search_step": -1, "max_percentile": 2, "asymmetric": "yes"})
    with pytest.raises(ValueError, match="3 problems") as caught:
        read(text)
    assert isinstance(caught.value, TypeError) and len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ('batch_num: 0 kv_cache_quant_config { quant_layers: "blk0.k_proj" }', ValueError, "batch"),
        ("batch_num: 1", RuntimeError, "no layer"),
        ("nonsense: 1", text_format.ParseError, "line 1"),
        (
            'kv_cache_quant_config { quant_layers: "blk0.k_proj" quant_layers: "blk0.k_proj" }',
            ValueError,
            "twice",
        ),
        ('kv_cache_quant_config { quant_layers: "blk0.norm" }', ValueError, "LayerNorm"),
        ('override_layers_configs { layer_name: "nowhere" }', ValueError, "nowhere"),
        ("override_layers_configs { }", ValueError, "required"),
        (
            'override_layers_configs { layer_name: "blk0.k_proj" kv_data_quant_config '
            "{ hfmg_quantize { num_of_bins: 7 } } }",
            ValueError,
            "override_layers_configs 'blk0.k_proj': hfmg_quantize.num_of_bins is 7",
        ),
    ],
)
def test_wrong_text_configs(text, error, says):
    with pytest.raises(error, match=says):
        read_text_config(text)


def test_a_missing_text_config_is_both_errors(tmp_path):
    with pytest.raises(RuntimeError, match="nothing.cfg"):
        read_kv_text_config(tmp_path / "nothing.cfg", MODULES)
    with pytest.raises(FileNotFoundError):
        read_kv_text_config(tmp_path, MODULES)


@pytest.mark.parametrize(
    ("names", "error", "says"),
    [
        ([], RuntimeError, "no layer"),
        (["blk0.k_proj", "blk0.k_proj"], ValueError, "twice"),
        (["blk0.norm"], ValueError, "Linear"),
        (["blk0.kproj"], ValueError, "blk0.k_proj"),
    ],
)
def test_wrong_selections(names, error, says):
    with pytest.raises(error, match=says):
        default_kv_config(names, MODULES)
