from __future__ import annotations

import pytest
from google.protobuf import text_format

from workbench.engine.files.prune_config import (
    ChannelPrune,
    PruneLayer,
    SelectivePrune,
    modes_named_twice,
    resolve_prune_config,
)
from workbench.engine.files.retrain_text import load_retrain_text_config, parse_retrain_text_config

LAYERS = {
    layer.name: layer
    for layer in (
        PruneLayer("stem", "Conv2d", "", "", quant=True),
        PruneLayer("deep", "Conv2d", "it is a depthwise convolution", "", quant=True),
        PruneLayer("up", "ConvTranspose2d", "", "", quant=True),
        PruneLayer("mix", "Conv1d", "", "Conv1d cannot be pruned", quant=True),
        PruneLayer("fc", "Linear", "", "", quant=True),
    )
}
GLOBAL = "prune_config { filter_pruner { balanced_l2_norm_filter_prune { %s } } }"
SPARSE = "prune_config { n_out_of_m_pruner { l1_selective_prune { %s } } }"
HALF = GLOBAL % "prune_ratio: 0.5"


def read(text: str, *, compat: bool = False) -> dict[str, ChannelPrune | SelectivePrune]:
    message = parse_retrain_text_config(text, source="x.cfg")
    return dict(resolve_prune_config(message, LAYERS, source="x.cfg", compat=compat).layers)


def override(name: str, body: str, kind: str = "layer") -> str:
    field = "override_layer_configs" if kind == "layer" else "override_layer_types"
    return f'{field} {{ layer_{"name" if kind == "layer" else "type"}: "{name}" {body} }}'


def test_global_setting_and_float_rounding() -> None:
    found = read(GLOBAL % "prune_ratio: 0.3 ascend_optimized: false")
    expected = dict.fromkeys(("stem", "up", "mix", "fc"), ChannelPrune(0.3, False))
    assert found == expected
    assert read(HALF)["stem"] == ChannelPrune(0.5, True)


def test_precedence() -> None:
    text = (
        GLOBAL % "prune_ratio: 0.5 ascend_optimized: false"
        + override("stem", GLOBAL % "prune_ratio: 0.1")
        + override("Linear", GLOBAL % "prune_ratio: 0.2", "type")
    )
    found = read(text)
    # Nothing is inherited: an override without ascend_optimized has its default.
    assert found["stem"] == ChannelPrune(0.1, True)
    assert found["fc"] == ChannelPrune(0.2, True)
    assert found["up"] == ChannelPrune(0.5, False)
    # A layer override of something else hides the type's.
    quant = override("fc", "retrain_weight_quant_config { arq_retrain { } }")
    assert read(text + quant)["fc"] == ChannelPrune(0.5, False)


def test_skip_beats_override() -> None:
    text = HALF + override("stem", GLOBAL % "prune_ratio: 0.1")
    for skip in ('regular_prune_skip_layers: "stem"', 'skip_layers: "stem"'):
        assert "stem" not in read(text + skip)
    assert set(read(HALF + 'regular_prune_skip_types: "Linear"')) == {"stem", "up", "mix"}


def test_modes_may_be_mixed_by_layer() -> None:
    found = read(SPARSE % "update_freq: 7" + override("stem", GLOBAL % "prune_ratio: 0.5"))
    assert found["stem"] == ChannelPrune(0.5)
    assert found["fc"] == found["deep"] == SelectivePrune(7)
    assert "mix" not in found


def test_a_quantisation_config_prunes_nothing() -> None:
    assert read("retrain_data_quant_config { ulq_quantize { } }") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch_num: 1", "without a setting"),
        ("prune_config { }", "empty"),
        ("prune_config { filter_pruner { } }", "balanced_l2_norm_filter_prune"),
        ("prune_config { n_out_of_m_pruner { } }", "l1_selective_prune"),
        (GLOBAL % "", "prune_ratio"),
        (GLOBAL % "prune_ratio: 0", "above 0 and below 1"),
        (GLOBAL % "prune_ratio: 1", "above 0 and below 1"),
        (GLOBAL % "prune_ratio: nan", "above 0 and below 1"),
        (HALF + override("stem", GLOBAL % "prune_ratio: 1.5"), r"\(layer stem\)"),
        (HALF + 'skip_layers: "stm"', "stem"),
        (HALF + 'regular_prune_skip_layers: "deep"', "depthwise"),
        (HALF + 'skip_layer_types: "ReLU"', "ReLU"),
        (HALF + override("nothing", HALF), "nothing"),
        (HALF + override("mix", SPARSE % ""), "mix"),
        (HALF + override("GRU", HALF, "type"), "GRU"),
        (HALF + override("stem", HALF) * 2, "more than once"),
        (HALF + override("Linear", HALF, "type") * 2, "more than once"),
        (override("stem", HALF) + 'regular_prune_skip_layers: "fc"', "no prune_config"),
        (HALF + "".join(f'skip_layers: "{n}"' for n in ("stem", "up", "mix", "fc")), "no layer"),
    ],
)
def test_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(text)


def test_all_problems_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        read(GLOBAL % "prune_ratio: 2" + 'skip_layers: "a"' + 'regular_prune_skip_layers: "b"')
    assert all(word in str(caught.value) for word in ("prune_ratio", "'a'", "'b'"))


def test_compat_knows_two_types_only() -> None:
    text = HALF + 'skip_layer_types: "ConvTranspose2d"'
    assert "up" not in read(text)
    with pytest.raises(ValueError, match="ConvTranspose2d"):
        read(text, compat=True)


def test_text_that_is_none() -> None:
    with pytest.raises(text_format.ParseError, match=r"x\.cfg, line 1"):
        read("prune_config { speed: 3 }")
    with pytest.raises(FileNotFoundError):
        load_retrain_text_config("/nowhere/x.cfg")


def test_both_modes_in_one_block_are_noticed() -> None:
    both = "prune_config { filter_pruner { } n_out_of_m_pruner { l1_selective_prune { } } }"
    assert modes_named_twice(both)
    assert modes_named_twice(override("stem", both))
    assert isinstance(read(both)["fc"], SelectivePrune)
    # One mode each in two blocks, and names in texts and comments, are fine.
    assert not modes_named_twice(HALF + override("stem", SPARSE % ""))
    assert not modes_named_twice(HALF + '# n_out_of_m_pruner {\nskip_layers: "n_out_of_m_pruner {"')
