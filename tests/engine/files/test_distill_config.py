from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from config_layers import LAYERS, Facts
from google.protobuf import text_format

from workbench.engine.errors import WorkbenchError
from workbench.engine.files.distill_config import (
    EXTENDED_TYPES,
    DistillConfig,
    parse_distill_config,
    read_distill_config,
)
from workbench.engine.files.distill_text import parse_distill_text, resolve_distill_text
from workbench.engine.files.proto_schema import message_class
from workbench.engine.files.sidecar import Sidecar, write_sidecar

MODULES = {
    **{name: facts.type for name, facts in LAYERS.items()},
    "stem.bn": "BatchNorm2d",
    "stem.act": "ReLU",
    "act6": "ReLU6",
    "pool": "AvgPool2d",
}

# Section 5's example, with a skipped layer whose sub-objects are complete all the same.
REFERENCE = """{
    "version":1,
    "batch_num":4,
    "group_size":2,
    "data_dump":false,
    "distill_group":[["stem.conv","stem.bn","stem.act"],["head.fc"]],
    "stem.conv":{
        "quant_enable":true,
        "distill_data_config":{
            "algo":"ulq_quantize","clip_max":3.0,"clip_min":-3.0,"dst_type":"INT8"},
        "distill_weight_config":{"algo":"arq_distill","channel_wise":true,"dst_type":"INT8"}},
    "head.fc":{
        "quant_enable":false,
        "distill_data_config":{"algo":"ulq_quantize","dst_type":"INT8"},
        "distill_weight_config":{"algo":"arq_distill","channel_wise":false,"dst_type":"INT8"}}
}"""

EXAMPLE_CFG = """
group_size: 2
batch_num: 4
distill_data_quant_config { ulq_quantize { fixed_min: false } }
distill_group { start_layer_name: "stem.conv" end_layer_name: "stem.act" }
quant_skip_layers: "head.fc"
distill_override_layers {
  layer_name: "stem.conv"
  distill_data_quant_config { ulq_quantize { clip_max_min { clip_max: 3.0 clip_min: -3.0 } } }
}
"""


def parse(text: str, **options: Any) -> DistillConfig:
    options = {"layers": LAYERS, "modules": MODULES} | options
    return parse_distill_config(text, source="c.json", **options)


def changed(**changes: Any) -> str:
    data = json.loads(REFERENCE)
    data.update(changes)
    return json.dumps(data)


def with_layer(**entry: Any) -> str:
    return changed(**{"stem.conv": entry})


def resolve(text: str, layers: Any = LAYERS) -> DistillConfig:
    return resolve_distill_text(parse_distill_text(text, source="my.cfg"), layers)


# --- JSON ------------------------------------------------------------------------------------


def test_a_file_of_the_reference_is_read_and_written_back_the_same() -> None:
    config = parse(REFERENCE)
    assert config.groups == (("stem.conv", "stem.bn", "stem.act"), ("head.fc",))
    assert config.enabled() == ("stem.conv",)
    written = config.to_json()
    assert json.loads(written) == json.loads(REFERENCE)
    assert list(json.loads(written)) == list(json.loads(REFERENCE))
    assert list(json.loads(written)["stem.conv"]["distill_data_config"]) == [
        "algo",
        "clip_max",
        "clip_min",
        "dst_type",
    ]
    assert written.startswith('{\n    "version":1,\n    "batch_num":4,')


@pytest.mark.parametrize(
    "key", ["version", "batch_num", "group_size", "data_dump", "distill_group"]
)
def test_every_global_key_must_be_there(key: str) -> None:
    data = json.loads(REFERENCE)
    del data[key]
    with pytest.raises(ValueError, match=f"{key} is missing"):
        parse(json.dumps(data))


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("{", ValueError, "c.json"),
        ("[]", TypeError, "a JSON object"),
        ('{"version":1,"version":1}', ValueError, "given more than once"),
        (changed(version=2), ValueError, "version is 2"),
        (changed(batch_num=0), ValueError, "batch_num is 0"),
        (changed(batch_num=True), TypeError, "batch_num"),
        (changed(group_size=-1), ValueError, "group_size"),
        (changed(data_dump=1), TypeError, "data_dump"),
        (changed(distill_group={}), TypeError, "a list of lists"),
        (changed(distill_group=["stem.conv"]), TypeError, r"distill_group\[0\]"),
        (changed(distill_group=[[]]), ValueError, "at least one module name"),
        (changed(distill_group=[["stem.conv", "no"]]), ValueError, "stem.conv to no.*'no'"),
        (changed(distill_group=[["stem.conv", "pool"]]), ValueError, r"'pool' \(AvgPool2d\)"),
        (changed(distill_group=[["act6"]]), ValueError, "ReLU6"),
        (changed(**{"no.such": {}}), ValueError, "no.such"),
        (changed(up={}), ValueError, "the name is 'up'"),
        (changed(reused={}), ValueError, "it is called 2 times"),
        (changed(**{"stem.conv": 1}), TypeError, "an object"),
        (with_layer(quant_enable=1), TypeError, "quant_enable"),
        (with_layer(other=1), ValueError, "other is an unknown key"),
        (with_layer(distill_data_config={"algo": "ifmr"}), ValueError, "ulq_quantize"),
        (with_layer(distill_data_config={"bits": 8}), ValueError, "bits is an unknown key"),
        (with_layer(distill_data_config={"clip_max": 3.0}), ValueError, "together with clip_min"),
        (with_layer(distill_data_config={"clip_min": -3.0}), ValueError, "together with clip_max"),
        (
            with_layer(distill_data_config={"clip_max": -1.0, "clip_min": -3.0}),
            ValueError,
            "a number above 0",
        ),
        (
            with_layer(distill_data_config={"clip_max": "3", "clip_min": -3.0}),
            TypeError,
            "clip_max",
        ),
        (with_layer(distill_data_config={"fixed_min": 0}), TypeError, "fixed_min"),
        (with_layer(distill_data_config={"dst_type": "INT4"}), ValueError, "INT4, as"),
        (with_layer(distill_weight_config={"dst_type": "INT16"}), ValueError, "INT8, INT4"),
        (with_layer(distill_weight_config={"algo": "ada"}), ValueError, "arq_distill, ulq_distill"),
        (
            changed(**{"head.fc": {"distill_weight_config": {"channel_wise": True}}}),
            ValueError,
            "false for Linear",
        ),
        (
            changed(
                odd={
                    "distill_data_config": {"dst_type": "INT4"},
                    "distill_weight_config": {"dst_type": "INT4"},
                }
            ),
            ValueError,
            "even number of input channels",
        ),
        (with_layer(quant_enable=False), ValueError, "no layer enabled"),
    ],
)
def test_what_is_wrong_in_a_file(text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        parse(text)
    assert isinstance(caught.value, WorkbenchError)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ValueError, match="3 problems"):
        parse(changed(batch_num=0, group_size=0, nothing={}))


def test_whole_numbers_are_clips_and_a_missing_layer_is_disabled() -> None:
    config = parse(with_layer(distill_data_config={"clip_max": 3, "clip_min": -2}))
    activation = config.layers["stem.conv"].activation
    assert (activation.clip_max, activation.clip_min) == (3.0, -2.0)
    assert config.layers["stem.conv"].weight.channel_wise
    assert "odd" not in config.layers


def test_no_groups_are_allowed() -> None:
    assert parse(changed(distill_group=[])).groups == ()


def test_files_and_their_options(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(changed(distill_group=[["stem.conv", "act6"]]))
    with pytest.raises(ValueError, match="ReLU6"):
        read_distill_config(file, LAYERS, MODULES)
    write_sidecar(file, Sidecar(options={EXTENDED_TYPES: True}))
    assert read_distill_config(file, LAYERS, MODULES).groups == (("stem.conv", "act6"),)
    for name in ("", "folder/"):
        with pytest.raises(ValueError, match="must name a file"):
            read_distill_config(name)
    with pytest.raises(OSError, match="does not exist"):
        read_distill_config(tmp_path / "no.json")


# --- .cfg ------------------------------------------------------------------------------------


def test_the_schema_has_the_numbers_of_the_chapter() -> None:
    """Wire bytes written out by hand: field number << 3 | wire type, then the value."""
    message = message_class(
        "distill_config_pytorch.proto", "AMCTPytorchDistillProto.AMCTDistillConfig"
    )()
    text_format.Merge(
        """
        batch_num: 2 group_size: 3 data_dump: true
        distill_group { start_layer_name: "a" end_layer_name: "b" }
        distill_data_quant_config { ulq_quantize {
            clip_max_min { clip_max: 1 clip_min: -1 } fixed_min: true dst_type: INT4 } }
        distill_weight_quant_config { arq_distill { dst_type: INT8 channel_wise: true } }
        distill_override_layers { layer_name: "c"
            distill_data_quant_config { ulq_quantize { dst_type: INT8 } }
            distill_weight_quant_config { ulq_distill { dst_type: INT8 channel_wise: false } } }
        distill_override_layer_types { layer_type: "d" }
        quant_skip_layers: "e" quant_skip_layer_types: "f"
        """,
        message,
    )
    clips = bytes.fromhex("0d0000803f 15000080bf")
    ulq = b"\x0a\x0a" + clips + b"\x10\x01" + b"\x18\x00"
    data = b"\x0a" + bytes([len(ulq)]) + ulq
    arq = b"\x0a\x04\x08\x01\x10\x01"
    layer = b"\x0a\x01c" + b"\x52\x04\x0a\x02\x18\x01" + b"\x5a\x06\x12\x04\x08\x01\x10\x00"
    assert message.SerializeToString() == (
        b"\x08\x02\x10\x03\x18\x01"
        + b"\x52\x06\x0a\x01a\x12\x01b"
        + (b"\x5a" + bytes([len(data)]) + data)
        + (b"\x62" + bytes([len(arq)]) + arq)
        + (b"\xf2\x06" + bytes([len(layer)]) + layer)
        + b"\xfa\x06\x03\x0a\x01d"
        + b"\xc2\x07\x01e"
        + b"\xca\x07\x01f"
    )


def test_the_chapters_example() -> None:
    text = parse_distill_text(EXAMPLE_CFG, source="my.cfg")
    assert text.groups() == (("stem.conv", "stem.act"),)
    config = resolve_distill_text(text, LAYERS)
    assert (config.batch_num, config.group_size) == (4, 2)
    assert list(config.layers) == ["stem.conv", "odd", "grouped", "head.fc", "nobias"]
    assert config.layers["stem.conv"].to_dict() == {
        "quant_enable": True,
        "distill_data_config": {
            "algo": "ulq_quantize",
            "clip_max": 3.0,
            "clip_min": -3.0,
            "dst_type": "INT8",
        },
        "distill_weight_config": {
            "algo": "arq_distill",
            "channel_wise": True,
            "dst_type": "INT8",
        },
    }
    assert config.layers["head.fc"].to_dict() == {
        "quant_enable": False,
        "distill_data_config": {"algo": "ulq_quantize", "dst_type": "INT8"},
        "distill_weight_config": {
            "algo": "arq_distill",
            "channel_wise": False,
            "dst_type": "INT8",
        },
    }
    assert config.layers["odd"].activation.fixed_min is False


def test_who_decides_for_a_layer() -> None:
    """Skipped > layer > type > global; a block is taken whole."""
    layer = (
        'distill_override_layers { layer_name: "stem.conv" distill_data_quant_config '
        "{ ulq_quantize { clip_max_min { clip_max: 0.1 clip_min: -1 } } } }"
    )
    rest = (
        "distill_weight_quant_config { ulq_distill { channel_wise: false } } "
        'distill_override_layer_types { layer_type: "Conv2d" distill_data_quant_config '
        "{ ulq_quantize { fixed_min: true } } }"
    )
    config = resolve(layer + rest)
    of_layer, of_type = config.layers["stem.conv"], config.layers["odd"]
    assert of_layer.activation.clip_max == 0.10000000149011612
    assert (of_layer.weight.algo, of_layer.weight.channel_wise) == ("arq_distill", True)
    assert of_type.activation.fixed_min is True
    assert of_type.weight.algo == "arq_distill"
    assert config.layers["head.fc"].weight.algo == "ulq_distill"
    for skip in ('quant_skip_layers: "stem.conv"', 'quant_skip_layer_types: "Conv2d"'):
        assert resolve(layer + rest + skip).layers["stem.conv"].quant_enable is False


FOUR_BITS = (
    "distill_data_quant_config { ulq_quantize { dst_type: INT4 } } "
    "distill_weight_quant_config { arq_distill { dst_type: INT4 } }"
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch_num: 0", "batch_num is 0"),
        ("group_size: 0", "group_size is 0"),
        ('quant_skip_layers: "stem.cnv"', "such as stem.conv"),
        ('quant_skip_layers: "up"', "quant_skip_layers is 'up'"),
        ('distill_override_layers { layer_name: "no" }', "distill_override_layers is 'no'"),
        ('quant_skip_layer_types: "Conv3d"', "types of this model's layers: Conv2d, Linear"),
        ('distill_override_layer_types { layer_type: "ReLU" }', "'ReLU'"),
        (
            'distill_override_layers { layer_name: "odd" } ' * 2,
            "'odd' twice",
        ),
        (
            'distill_override_layer_types { layer_type: "Linear" } ' * 2,
            "'Linear' twice",
        ),
        (
            "distill_data_quant_config { ulq_quantize { dst_type: INT4 } }",
            "dst_type of the weight is INT8; allowed: INT4",
        ),
        (
            'distill_override_layers { layer_name: "head.fc" distill_weight_quant_config '
            "{ arq_distill { channel_wise: true } } }",
            "false for Linear",
        ),
        ('distill_override_layers { layer_name: "odd" ' + FOUR_BITS + " }", "even number of input"),
        ('distill_group { start_layer_name: "a" }', "end_layer_name is missing"),
        ("distill_override_layers { }", "layer_name is missing"),
        (
            "distill_data_quant_config { ulq_quantize { clip_max_min { clip_max: 1 } } }",
            "clip_min is missing",
        ),
        (
            "distill_data_quant_config { ulq_quantize { clip_max_min "
            "{ clip_max: -1 clip_min: -1 } } }",
            "a finite number above 0",
        ),
        (
            'quant_skip_layer_types: "Conv2d" quant_skip_layer_types: "Linear"',
            "at least one layer enabled",
        ),
    ],
)
def test_what_is_wrong_in_a_text(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resolve(text)


def test_an_unknown_field_is_a_parse_error_with_its_line() -> None:
    with pytest.raises(text_format.ParseError, match="my.cfg, line 2"):
        resolve("batch_num: 1\nnothing: 2")


def test_what_a_global_setting_cannot_have_is_said(caplog: pytest.LogCaptureFixture) -> None:
    config = resolve(
        FOUR_BITS.replace("dst_type: INT4 } }", "dst_type: INT4 channel_wise: true } }").replace(
            "INT4 channel_wise: true } } distill_weight", "INT4 } } distill_weight"
        )
        + ' quant_skip_layers: "nobias" quant_skip_layers: "nobias"'
    )
    assert config.layers["stem.conv"].weight.channel_wise
    assert not config.layers["head.fc"].weight.channel_wise
    assert config.layers["stem.conv"].weight.dst_type == "INT4"
    for name in ("odd", "grouped"):
        entry = config.layers[name]
        assert (entry.activation.dst_type, entry.weight.dst_type) == ("INT8", "INT8")
    assert "set to false for head.fc" in caplog.text
    assert "INT4 is set to INT8 for odd" in caplog.text
    assert "'nobias' twice" in caplog.text


def test_a_model_without_a_layer_says_why() -> None:
    layers = {"reused": Facts("reused", "Conv2d", eligible=False, reason="it is called 2 times")}
    with pytest.raises(ValueError, match="supported distillation layer.*called 2 times"):
        resolve("", layers)
