"""JSON to text to JSON: the same entries, whichever way one goes."""

from __future__ import annotations

import pytest
from config_layers import LAYERS
from hypothesis import given
from hypothesis import strategies as st

from workbench.engine.files.config import (
    ActivationParams,
    LayerConfig,
    QuantConfig,
    WeightParams,
    default_config,
    parse_config,
)
from workbench.engine.files.layer_rules import (
    int16_obstacle,
    rules_for,
    weight_bits_obstacle,
)
from workbench.engine.files.text_config import (
    format_text_config,
    parse_text_config,
    resolve_text_config,
)


def read(text: str, *, channel_wise_linear: bool = False) -> QuantConfig:
    loaded = parse_text_config(text, source="my.cfg")
    return resolve_text_config(loaded, LAYERS, channel_wise_linear=channel_wise_linear)


FRACTION = st.integers(1, 999).map(lambda n: n / 1000)
IFMR = st.builds(
    ActivationParams,
    num_bits=st.sampled_from([8, 16]),
    asymmetric=st.booleans(),
    max_percentile=st.integers(501, 1000).map(lambda n: n / 1000),
    min_percentile=st.integers(501, 1000).map(lambda n: n / 1000),
    search_range=st.sampled_from([(0.7, 1.3), (0.3, 1.7), (0.05, 3.0)]),
    search_step=st.sampled_from([0.01, 0.02, 0.3]),
)
HFMG = st.builds(
    ActivationParams,
    num_bits=st.sampled_from([8, 16]),
    act_algo=st.just("hfmg"),
    asymmetric=st.booleans(),
    num_of_bins=st.sampled_from([1024, 2048, 4096, 8192]),
)
ARQ = st.builds(WeightParams, num_bits=st.sampled_from([4, 6, 7, 8]), channel_wise=st.booleans())
ADA = st.builds(
    WeightParams,
    wts_algo=st.just("ada_quantize"),
    channel_wise=st.booleans(),
    reg_param=FRACTION,
    warm_start=FRACTION,
    num_iteration=st.integers(0, 2**32 - 1),
    beta_range=st.sampled_from([(20.0, 2.0), (3.5, 0.1)]),
)


@st.composite
def configurations(draw: st.DrawFn) -> QuantConfig:
    """What JSON may hold and text has words for; few kinds of entries, so that blocks repeat."""
    activations = draw(st.lists(st.one_of(IFMR, HFMG), min_size=1, max_size=3))
    weights = draw(st.lists(st.one_of(ARQ, ADA), min_size=1, max_size=3))
    entries = {}
    for name, layer in LAYERS.items():
        if not layer.eligible:
            continue
        rules = rules_for(layer)
        activation = draw(st.sampled_from(activations))
        chosen = draw(st.sampled_from(weights))
        if activation.num_bits == 16 and int16_obstacle(layer):
            activation = ActivationParams(asymmetric=activation.asymmetric)
        if not rules.asymmetric:
            activation = ActivationParams(asymmetric=False)
        refused = chosen.wts_algo == "ada_quantize" and not rules.ada
        if refused or weight_bits_obstacle(layer, chosen.num_bits):
            chosen = WeightParams(channel_wise=chosen.channel_wise)
        if not rules.channel_wise:
            chosen = WeightParams(**{**vars(chosen), "channel_wise": False})
        dmq = draw(st.sampled_from([None, 0.2, 0.55])) if rules.dmq else None
        entries[name] = LayerConfig(draw(st.booleans()), activation, chosen, dmq)
    entries["up"] = LayerConfig(True, entries["up"].activation, entries["up"].weight)
    return QuantConfig(
        batch_num=draw(st.integers(1, 9)),
        activation_offset=draw(st.booleans()),
        do_fusion=draw(st.booleans()),
        fakequant_precision_mode=draw(st.sampled_from(["DEFAULT", "FORCE_FP16_QUANT"])),
        skip_fusion_layers=draw(st.sampled_from([(), ("odd",), ("vol", "stem.conv")])),
        layers=entries,
    )


@given(configurations())
def test_json_to_text_and_back(config: QuantConfig) -> None:
    text = format_text_config(config, LAYERS)
    assert read(text).to_json() == config.to_json()
    assert format_text_config(read(text), LAYERS) == text
    assert parse_config(config.to_json(), source="c", layers=LAYERS) == config


def test_text_to_json_and_back_without_weight_settings() -> None:
    config = read("common_config { ada_quantize {} ifmr_quantize { asymmetric: false } }")
    assert config.layers["pool"].weight is None
    assert read(format_text_config(config, LAYERS)) == config


def test_a_json_that_says_little_means_the_same_as_text() -> None:
    given_json = '{"stem.conv":{"quant_enable":true},"pool":{"quant_enable":true}}'
    config = parse_config(given_json, source="c", layers=LAYERS)
    again = read(format_text_config(config, LAYERS))
    assert set(again.enabled()) == {"stem.conv", "pool"}
    assert again.asymmetric("stem.conv") == config.asymmetric("stem.conv")
    assert again.layers["stem.conv"].weight == config.layers["stem.conv"].weight


def test_short_configurations_stay_short() -> None:
    assert format_text_config(default_config(LAYERS), LAYERS).split("\n") == [
        "batch_num: 1",
        "activation_offset: true",
        "",
    ]


def test_channel_wise_linear_goes_through_text() -> None:
    config = default_config(LAYERS, channel_wise_linear=True)
    text = format_text_config(config, LAYERS, channel_wise_linear=True)
    assert read(text, channel_wise_linear=True) == config


def test_what_text_has_no_words_for() -> None:
    config = parse_config(
        '{"stem.conv":{"quant_enable":true,"activation_quant_params":{"num_bits":4}},'
        '"up":{"weight_quant_params":{"wts_algo":"ada_quantize","num_bits":4}}}',
        source="c",
        layers=LAYERS,
    )
    with pytest.raises(ValueError, match="num_bits is 4") as caught:
        format_text_config(config, LAYERS)
    assert len(caught.value.problems) == 2  # type: ignore[attr-defined]
    nothing = default_config(LAYERS).with_enabled(
        dict.fromkeys(default_config(LAYERS).layers, False)
    )
    with pytest.raises(RuntimeError, match="enabled"):
        format_text_config(nothing, LAYERS)
