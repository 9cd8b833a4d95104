from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
from config_layers import LAYERS, Facts
from google.protobuf import text_format

from workbench.engine.errors import WorkbenchError
from workbench.engine.files.config import (
    QuantConfig,
    WeightParams,
    default_config,
    parse_config,
)
from workbench.engine.files.text_config import (
    parse_text_config,
    read_text_config,
    resolve_text_config,
)

MODULES = [*LAYERS, "relu", "bn"]


def read(text: str, *, layers: Any = LAYERS, **options: Any) -> QuantConfig:
    loaded = parse_text_config(text, source="my.cfg")
    return resolve_text_config(loaded, layers, modules=MODULES, **options)


def on_type(kind: str, block: str) -> str:
    return f'override_layer_types {{ layer_type: "{kind}" calibration_config {{ {block} }} }}'


def on_layer(name: str, block: str) -> str:
    return f'override_layer_configs {{ layer_name: "{name}" calibration_config {{ {block} }} }}'


def common(block: str) -> str:
    return f"common_config {{ {block} }}"


def weight(config: QuantConfig, name: str) -> WeightParams:
    found = config.layers[name].weight
    assert found is not None
    return found


def asymmetric(config: QuantConfig) -> dict[str, bool | None]:
    return {name: entry.activation.asymmetric for name, entry in config.layers.items()}


# Section 15, Config


def test_empty_text_gives_the_default_configuration() -> None:
    for text in ("", "common_config {}", "common_config { ifmr_quantize {} arq_quantize {} }"):
        assert read(text).to_json() == default_config(LAYERS).to_json()


def test_asymmetric_comes_from_common_only_for_the_same_algorithm() -> None:
    config = read(
        "activation_offset: true\n"
        + common("ifmr_quantize { asymmetric: false }")
        + on_type("Linear", "ifmr_quantize { search_step: 0.02 }")
        + on_layer("nobias", "hfmg_quantize {}")
    )
    assert asymmetric(config) == {
        "stem.conv": False,
        "odd": False,
        "grouped": False,
        "up": False,
        "head.fc": False,
        "nobias": True,
        "pool": False,
        "vol": False,
    }
    assert config.layers["head.fc"].activation.search_step == 0.02
    assert config.layers["nobias"].activation.act_algo == "hfmg"


@pytest.mark.parametrize("offset", [True, False])
def test_order_of_asymmetric(offset: bool) -> None:
    config = read(
        f"activation_offset: {str(offset).lower()}\n"
        + on_type("Conv2d", f"ifmr_quantize {{ asymmetric: {str(not offset).lower()} }}")
        + on_layer("odd", f"ifmr_quantize {{ asymmetric: {str(offset).lower()} }}")
    )
    found = asymmetric(config)
    assert found["stem.conv"] is not offset
    assert found["odd"] is offset
    assert found["head.fc"] is offset
    assert found["vol"] is False


def test_the_chosen_block_is_not_merged_with_the_common_one() -> None:
    config = read(
        common("ada_quantize { num_iteration: 5 } dmq_balancer {}")
        + on_type("Conv2d", "ifmr_quantize { max_percentile: 0.9 }")
    )
    assert weight(config, "stem.conv").wts_algo == "arq_quantize"
    assert config.layers["stem.conv"].dmq_balancer_param is None
    linear = config.layers["head.fc"]
    assert linear.dmq_balancer_param == 0.5
    assert linear.weight is not None
    assert (linear.weight.wts_algo, linear.weight.num_iteration) == ("ada_quantize", 5)
    # Types without ADA have no weight settings at all, which read as ARQ.
    assert config.layers["pool"].weight is None
    assert config.layers["vol"].weight is None
    read_back = parse_config(config.to_json(), source="c.json", layers=LAYERS)
    assert weight(read_back, "vol") == WeightParams(channel_wise=True)
    assert (
        '"weight_quant_params"' not in config.to_json().partition('"pool"')[2].partition("}\n")[0]
    )


def test_the_example_of_the_specification() -> None:
    config = read(
        """
        batch_num: 4
        activation_offset: true
        skip_layers: "head.fc"
        common_config { hfmg_quantize { num_of_bins: 2048 asymmetric: true } }
        override_layer_types { layer_type: "Conv2d" calibration_config {
            arq_quantize { channel_wise: true quant_bits: 7 } } }
        override_layer_configs { layer_name: "stem.conv" calibration_config {
            ada_quantize { num_iteration: 2000 channel_wise: true }
            dmq_balancer { migration_strength: 0.6 } } }
        """
    )
    assert config.batch_num == 4
    assert config.enabled() == ("stem.conv", "odd", "grouped", "up", "nobias", "pool", "vol")
    stem = config.layers["stem.conv"]
    assert stem.dmq_balancer_param == 0.6
    assert stem.activation.act_algo == "ifmr"
    assert weight(config, "stem.conv").num_iteration == 2000
    assert weight(config, "odd").num_bits == 7
    assert config.layers["up"].activation.num_of_bins == 2048
    assert weight(config, "up").num_bits == 8


def test_every_field_reaches_its_key() -> None:
    config = read(
        "batch_num: 3 activation_offset: false fakequant_precision_mode: FORCE_FP16_QUANT "
        'do_fusion: false skip_fusion_layers: "stem.conv" skip_layer_types: "Linear"'
        + on_layer(
            "stem.conv",
            "ifmr_quantize { search_range_start: 0.8 search_range_end: 1.2 search_step: 0.05 "
            "max_percentile: 0.99 min_percentile: 0.98 asymmetric: true dst_type: INT16 } "
            "ada_quantize { num_iteration: 7 reg_param: 0.02 beta_range_start: 15 "
            "beta_range_end: 3 warm_start: 0.3 channel_wise: false }",
        )
        + on_layer("up", "hfmg_quantize { num_of_bins: 8192 asymmetric: true dst_type: INT16 }")
        + on_layer("grouped", "arq_quantize { quant_bits: 6 channel_wise: false }")
    )
    assert (config.batch_num, config.activation_offset, config.do_fusion) == (3, False, False)
    assert config.fakequant_precision_mode == "FORCE_FP16_QUANT"
    assert config.skip_fusion_layers == ("stem.conv",)
    assert not config.layers["head.fc"].quant_enable
    assert not config.layers["nobias"].quant_enable
    assert config.layers["stem.conv"].to_dict() == {
        "quant_enable": True,
        "activation_quant_params": {
            "num_bits": 16,
            "max_percentile": 0.99,
            "min_percentile": 0.98,
            "search_range": [0.8, 1.2],
            "search_step": 0.05,
            "act_algo": "ifmr",
            "asymmetric": True,
        },
        "weight_quant_params": {
            "num_bits": 8,
            "reg_param": 0.02,
            "warm_start": 0.3,
            "num_iteration": 7,
            "beta_range": [15.0, 3.0],
            "channel_wise": False,
            "wts_algo": "ada_quantize",
        },
    }
    assert config.layers["up"].activation.to_dict() == {
        "num_bits": 16,
        "act_algo": "hfmg",
        "asymmetric": True,
        "num_of_bins": 8192,
    }
    assert weight(config, "grouped") == WeightParams(num_bits=6, channel_wise=False)


def test_the_last_member_of_a_oneof_wins() -> None:
    config = read(
        common("arq_quantize { quant_bits: 7 } ada_quantize {} ifmr_quantize {} hfmg_quantize {}")
    )
    assert weight(config, "stem.conv").wts_algo == "ada_quantize"
    assert config.layers["stem.conv"].activation.act_algo == "hfmg"


# Section 5.3, a test for each row


REPEATED = {
    "skip_layers": 'skip_layers: "up" skip_layers: "up"',
    "skip_layer_types": 'skip_layer_types: "Linear" skip_layer_types: "Linear"',
    "skip_fusion_layers": 'skip_fusion_layers: "odd" skip_fusion_layers: "odd"',
    "override_layer_types": on_type("Linear", "") * 2,
    "override_layer_configs": on_layer("up", "") * 2,
}

REFUSED: list[tuple[str, list[str]]] = [
    *((text, [field, "twice"]) for field, text in REPEATED.items()),
    ('skip_layers: "nope"', ["skip_layers", "nope"]),
    ('skip_layers: "relu"', ["skip_layers", "relu"]),
    (on_layer("nope", ""), ["override_layer_configs", "nope"]),
    ('skip_layer_types: "ReLU"', ["skip_layer_types", "ReLU", "Conv2d"]),
    (on_type("BatchNorm2d", ""), ["override_layer_types", "BatchNorm2d"]),
    ('skip_fusion_layers: "head.fc"', ["skip_fusion_layers", "head.fc"]),
    ('skip_fusion_layers: "nope"', ["skip_fusion_layers", "nope"]),
    (
        "".join(f'skip_layer_types: "{t}"' for t in ("Conv2d", "Conv3d", "Linear", "AvgPool2d"))
        + 'skip_layers: "up"',
        ["every layer"],
    ),
    ("".join(f'skip_layers: "{n}"' for n in LAYERS if n != "reused"), ["every layer"]),
    (on_type("Linear", "arq_quantize { channel_wise: true }"), ["channel_wise", "Linear"]),
    (on_type("AvgPool2d", "arq_quantize { channel_wise: true }"), ["channel_wise", "AvgPool2d"]),
    (on_layer("head.fc", "ada_quantize { channel_wise: true }"), ["channel_wise", "head.fc"]),
    (on_type("Conv3d", "ifmr_quantize { asymmetric: true }"), ["asymmetric", "Conv3d"]),
    (on_layer("vol", "hfmg_quantize { asymmetric: true }"), ["asymmetric", "vol"]),
    (on_type("AvgPool2d", "dmq_balancer {}"), ["dmq_balancer", "AvgPool2d"]),
    (on_layer("pool", "dmq_balancer {}"), ["dmq_balancer", "pool"]),
    (on_type("LSTM", "dmq_balancer {}"), ["dmq_balancer", "LSTM"]),
    (on_type("Conv3d", "ifmr_quantize { dst_type: INT16 }"), ["dst_type", "Conv3d"]),
    (on_layer("pool", "hfmg_quantize { dst_type: INT16 }"), ["dst_type", "pool"]),
    (on_type("Linear", "ifmr_quantize { dst_type: INT16 }"), ["dst_type", "bias", "nobias"]),
    (on_layer("nobias", "ifmr_quantize { dst_type: INT16 }"), ["dst_type", "nobias"]),
    (on_type("Conv3d", "ada_quantize {}"), ["ada_quantize", "Conv3d"]),
    (on_layer("pool", "ada_quantize {}"), ["ada_quantize", "pool"]),
    *(
        (on_type(kind, f"arq_quantize {{ quant_bits: {bits} }}"), ["quant_bits", kind])
        for bits in (6, 7)
        for kind in ("Linear", "Conv3d", "ConvTranspose2d", "Conv1d", "LSTM")
    ),
    (on_layer("up", "arq_quantize { quant_bits: 7 }"), ["quant_bits", "up"]),
    *((common(f"arq_quantize {{ quant_bits: {bits} }}"), ["quant_bits"]) for bits in (0, 5, 9, 16)),
]

# Section 4: the value itself, on both sides of its bound.
OUTSIDE: list[tuple[str, str]] = [
    ("ifmr_quantize { max_percentile: 0.5 }", "max_percentile"),
    ("ifmr_quantize { max_percentile: 1.000001 }", "max_percentile"),
    ("ifmr_quantize { min_percentile: 0.5 }", "min_percentile"),
    ("ifmr_quantize { min_percentile: 1.000001 }", "min_percentile"),
    ("ifmr_quantize { min_percentile: nan }", "min_percentile"),
    ("ifmr_quantize { search_range_start: 0 }", "search_range_start"),
    ("ifmr_quantize { search_range_start: 1.3 }", "search_range_end"),
    ("ifmr_quantize { search_range_end: inf }", "search_range_end"),
    ("ifmr_quantize { search_step: 0 }", "search_step"),
    ("ifmr_quantize { search_step: 0.600001 }", "search_step"),
    ("hfmg_quantize { num_of_bins: 0 }", "num_of_bins"),
    ("hfmg_quantize { num_of_bins: 1023 }", "num_of_bins"),
    ("hfmg_quantize { num_of_bins: 16384 }", "num_of_bins"),
    ("ada_quantize { reg_param: 0 }", "reg_param"),
    ("ada_quantize { reg_param: 1 }", "reg_param"),
    ("ada_quantize { warm_start: 0 }", "warm_start"),
    ("ada_quantize { warm_start: 1 }", "warm_start"),
    ("ada_quantize { beta_range_start: 2 }", "beta_range_start"),
    ("ada_quantize { beta_range_end: 0 }", "beta_range_end"),
    ("ada_quantize { beta_range_end: 20 }", "beta_range_end"),
    ("dmq_balancer { migration_strength: 0.199 }", "migration_strength"),
    ("dmq_balancer { migration_strength: 0.801 }", "migration_strength"),
]
REFUSED += [(common(block), ["common_config", field]) for block, field in OUTSIDE]
REFUSED += [(on_layer("stem.conv", block), ["stem.conv", field]) for block, field in OUTSIDE[:3]]
REFUSED += [("batch_num: 0", ["batch_num"])]

INSIDE = [
    "ifmr_quantize { max_percentile: 0.500001 min_percentile: 1 }",
    "ifmr_quantize { search_step: 0.6 }",
    "ifmr_quantize { search_range_start: 0.001 search_range_end: 0.002 search_step: 0.001 }",
    "hfmg_quantize { num_of_bins: 1024 }",
    "hfmg_quantize { num_of_bins: 8192 dst_type: INT8 }",
    "ada_quantize { num_iteration: 0 reg_param: 0.999 warm_start: 0.001 }",
    "ada_quantize { beta_range_start: 2 beta_range_end: 1.999 }",
    "dmq_balancer { migration_strength: 0.2 }",
    "dmq_balancer { migration_strength: 0.8 }",
]


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_refused(text: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        read(text)
    assert isinstance(caught.value, WorkbenchError)
    assert len(caught.value.problems) == 1  # type: ignore[attr-defined]
    for word in ["my.cfg", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("block", INSIDE)
def test_allowed_to_the_bound(block: str) -> None:
    config = read(on_layer("stem.conv", block))
    assert parse_config(config.to_json(), source="c.json", layers=LAYERS) == config


WARNING, INFO = logging.WARNING, logging.INFO
# (block of common_config, layer, what of its entry, what it becomes, level of the log line)
CORRECTED: list[tuple[str, str, str, Any, int]] = [
    ("arq_quantize { channel_wise: true }", "head.fc", "weight.channel_wise", False, INFO),
    ("arq_quantize { channel_wise: true }", "pool", "weight.channel_wise", False, INFO),
    ("ada_quantize { channel_wise: true }", "head.fc", "weight.channel_wise", False, INFO),
    ("ifmr_quantize { asymmetric: true }", "vol", "activation.asymmetric", False, INFO),
    ("dmq_balancer {}", "pool", "dmq_balancer_param", None, WARNING),
    ("ifmr_quantize { dst_type: INT16 }", "vol", "activation.num_bits", 8, WARNING),
    ("hfmg_quantize { dst_type: INT16 }", "nobias", "activation.num_bits", 8, WARNING),
    ("ada_quantize {}", "pool", "weight", None, INFO),
    ("ada_quantize {}", "vol", "weight", None, INFO),
    ("arq_quantize { quant_bits: 6 }", "head.fc", "weight.num_bits", 8, WARNING),
    ("arq_quantize { quant_bits: 7 }", "up", "weight.num_bits", 8, WARNING),
    ("arq_quantize { quant_bits: 4 }", "grouped", "weight.num_bits", 8, WARNING),
    ("arq_quantize { quant_bits: 4 }", "odd", "weight.num_bits", 8, WARNING),
]


@pytest.mark.parametrize(("block", "name", "attribute", "expected", "level"), CORRECTED)
def test_corrected_when_common(
    block: str,
    name: str,
    attribute: str,
    expected: Any,
    level: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(INFO, logger="workbench"):
        config = read(common(block))
    value: Any = config.layers[name]
    for part in attribute.split("."):
        value = getattr(value, part)
    assert value is expected or value == expected
    lines = [r for r in caplog.records if name in r.getMessage()]
    assert [line.levelno for line in lines] == [level]


@pytest.mark.parametrize("text", [on_type("Conv2d", "arq_quantize { quant_bits: 4 }")])
def test_four_bits_that_do_not_fit_become_eight_from_any_source(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = read(text + on_layer("grouped", "arq_quantize { quant_bits: 4 }"))
    bits = {n: weight(config, n).num_bits for n in ("stem.conv", "odd", "grouped")}
    assert bits == {"stem.conv": 4, "odd": 8, "grouped": 8}
    assert [r.levelno for r in caplog.records] == [WARNING, WARNING]


def test_an_override_for_what_cannot_be_quantised_is_ignored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("relu", "reused"):
        assert read(on_layer(name, "hfmg_quantize {}")) == default_config(LAYERS)
        assert caplog.records[-1].levelno == WARNING
        assert name in caplog.records[-1].getMessage()


def test_a_skipped_layer_does_not_break_its_types_override() -> None:
    text = on_type("Linear", "ifmr_quantize { dst_type: INT16 }") + 'skip_layers: "nobias"'
    config = read(text)
    assert config.layers["head.fc"].activation.num_bits == 16
    assert config.layers["nobias"].activation.num_bits == 8


def test_channel_wise_linear_is_an_opt_in() -> None:
    for text in (
        "",
        common("arq_quantize { channel_wise: true }"),
        on_type("Linear", "arq_quantize { channel_wise: true }"),
        on_layer("head.fc", "ada_quantize { channel_wise: true }"),
    ):
        assert weight(read(text, channel_wise_linear=True), "head.fc").channel_wise
    off = read(on_type("Linear", "arq_quantize {channel_wise: false}"), channel_wise_linear=True)
    assert not weight(off, "head.fc").channel_wise
    assert not weight(read(""), "head.fc").channel_wise


# D12: everything in one report, files named


def test_all_problems_come_in_one_report() -> None:
    text = "\n".join(
        [
            "batch_num: 0",
            'skip_layers: "nope"',
            common("hfmg_quantize { num_of_bins: 1000 }"),
            on_type("Linear", "arq_quantize { channel_wise: true quant_bits: 6 }"),
            on_layer("vol", "ifmr_quantize { asymmetric: true search_step: 2 }"),
            'override_layer_configs { layer_name: "up" }',
            "override_layer_types { calibration_config {} }",
        ]
    )
    with pytest.raises(ValueError) as caught:
        read(text)
    report = str(caught.value)
    for word in (
        "batch_num is 0",
        "'nope'",
        "hfmg_quantize.num_of_bins is 1000; allowed: 1024, 2048, 4096, 8192",
        "arq_quantize.channel_wise is true",
        "arq_quantize.quant_bits is 6",
        "override_layer_configs 'vol': ifmr_quantize.asymmetric is true",
        "override_layer_configs 'vol': ifmr_quantize.search_step is 2.0",
        "override_layer_configs[1].calibration_config is missing",
        "override_layer_types[1].layer_type is missing",
    ):
        assert word in report
    assert len(caught.value.problems) == 9  # type: ignore[attr-defined]
    assert str(pickle.loads(pickle.dumps(caught.value))) == report


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("batch_num: 2\ncolour: 3", 2, "colour"),
        ("\n\ncommon_config {\n arq_quantize { num_bits: 8 } }", 4, "num_bits"),
        ("batch_num: 1\nbatch_num: -1", 2, "-1"),
        ("common_config {", 1, ""),
        ("fakequant_precision_mode: DEFAULT", 1, "DEFAULT"),
        (common("\nifmr_quantize { dst_type: INT4 }"), 2, "INT4"),
    ],
)
def test_what_protobuf_cannot_read(text: str, line: int, word: str) -> None:
    with pytest.raises(text_format.ParseError) as caught:
        read(text)
    assert isinstance(caught.value, WorkbenchError)
    assert isinstance(caught.value, ValueError)
    assert f"my.cfg, line {line}" in str(caught.value)
    assert word in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({}, "at least one Conv2d"),
        ({"reused": LAYERS["reused"]}, "reused: "),
        ({"version": Facts("version", "Conv2d")}, "name of a layer is 'version'"),
    ],
)
def test_models_without_a_configuration(layers: dict[str, Facts], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read("", layers=layers)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.cfg"):
        read_text_config(tmp_path / "no.cfg", LAYERS)


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.cfg").write_text('batch_num: 2 skip_layers: "up"')
    config = read_text_config(tmp_path / "a.cfg", LAYERS)
    assert config == default_config(LAYERS, skip_layers=["up"], batch_num=2)
