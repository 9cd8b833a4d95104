"""The Layers table as the text configuration of sparse and combined trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from studio_models import make_data, make_net

from workbench.engine.errors import WrongState, WrongValue
from workbench.engine.files.prune_config import ChannelPrune, SelectivePrune
from workbench.engine.files.retrain_text import parse_retrain_text_config
from workbench.engine.flows.compress_config import CompressConfig, resolve_compress_config
from workbench.engine.flows.prune_layers import prune_layers
from workbench.engine.flows.qat_layers import retrain_layers
from workbench.engine.graph.capture import Captured, capture
from workbench.studio.compression_config import (
    Compression,
    chosen_for_pruning,
    compression_for,
    compression_text,
    read_compression,
)

NAMES = ("conv1", "conv2", "fc")


@pytest.fixture(scope="module")
def captured() -> Captured:
    return capture(make_net(), (make_data()[0][0],), dynamic=False)


def columns(**changes: list[Any]) -> dict[str, list[Any]]:
    usual = {
        "retrain_enable": [True] * 3, "channel_wise": [True, True, False], "act_bits": [8] * 3,
        "wts_bits": [8] * 3, "prune_enable": [False] * 3, "prune_ratio": [0.2] * 3,
    }  # fmt: skip
    return usual | changes


def text_of(captured: Captured, wanted: Compression, table: dict[str, list[Any]]) -> str:
    return compression_text(
        wanted, [captured.layers[name] for name in NAMES], table,
        trainable=retrain_layers(captured), prunable=prune_layers(captured), batch_num=3,
    )  # fmt: skip


def resolved(
    captured: Captured, wanted: Compression, table: dict[str, list[Any]]
) -> CompressConfig:
    message = parse_retrain_text_config(text_of(captured, wanted, table), source="test")
    return resolve_compress_config(message, captured, source="test")


TWO, CHANNELS, NONE = (
    {"sparsity": "2:4"}, {"sparsity": "channels"}, {"sparsity": "none"},
)  # fmt: skip
FLOAT = {"quantise": False}


@pytest.mark.parametrize(
    ("scenario", "wanted", "changes", "quantised", "pruned"),
    [
        (1, TWO, {}, NAMES, NAMES),
        (1, CHANNELS, {}, NAMES, NAMES),
        (2, TWO, {"retrain_enable": [True, False, True]}, ("conv1", "fc"), NAMES),
        (3, TWO, {"prune_enable": [False, True, False]}, NAMES, ("conv2",)),
        (4, CHANNELS, {"retrain_enable": [True, False, True], "prune_enable": [True, True, False],
                       "prune_ratio": [0.2, 0.5, 0.9]}, ("conv1", "fc"), ("conv1", "conv2")),
        (5, NONE, {}, NAMES, ()),
        (6, NONE, {"retrain_enable": [False, True, True]}, ("conv2", "fc"), ()),
        (7, TWO | FLOAT, {}, (), NAMES),
        (7, CHANNELS | FLOAT, {}, (), NAMES),
        (8, TWO | FLOAT, {"prune_enable": [True, False, True]}, (), ("conv1", "fc")),
    ],
)  # fmt: skip
def test_the_eight_scenarios(
    captured: Captured,
    scenario: int,
    wanted: dict[str, Any],
    changes: dict[str, list[Any]],
    quantised: tuple[str, ...],
    pruned: tuple[str, ...],
) -> None:
    found = resolved(captured, Compression(**wanted), columns(**changes))
    assert (found.quant is None) == (not quantised)
    if found.quant is not None:
        assert set(found.quant.enabled()) == set(quantised)
        assert found.quant.batch_num == 3
    assert set(found.prune.layers) == set(pruned)


def test_whole_networks_need_no_overrides(captured: Captured) -> None:
    text = text_of(captured, Compression(), columns(channel_wise=[True, True, True]))
    assert "override_layer_configs" not in text and "skip" not in text


rows = st.lists(st.booleans(), min_size=3, max_size=3)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    retrain=rows,
    channel_wise=rows,
    act_bits=st.lists(st.sampled_from([8, 16]), min_size=3, max_size=3),
    wts_bits=st.lists(st.sampled_from([8, 4]), min_size=3, max_size=3),
    prune=rows,
    ratios=st.lists(st.sampled_from([0.2, 0.25, 0.5]), min_size=3, max_size=3),
    sparsity=st.sampled_from(["2:4", "channels", "none"]),
)
def test_every_layer_gets_what_its_row_says(
    captured: Captured,
    retrain: list[bool],
    channel_wise: list[bool],
    act_bits: list[int],
    wts_bits: list[int],
    prune: list[bool],
    ratios: list[float],
    sparsity: str,
) -> None:
    retrain[1] = True  # at least one
    act_bits[0] = 8  # a convolution that reads the input's three channels cannot have INT4
    wts_bits[0] = 8
    table = columns(
        retrain_enable=retrain, channel_wise=channel_wise, act_bits=act_bits, wts_bits=wts_bits,
        prune_enable=prune, prune_ratio=ratios,
    )  # fmt: skip
    wanted = Compression(sparsity=sparsity, update_freq=5, prune_ratio=0.3, ascend_optimized=False)
    found = resolved(captured, wanted, table)
    assert found.quant is not None
    for row, name in enumerate(NAMES):
        entry = found.quant.layers[name]
        assert entry.retrain_enable == retrain[row]
        if retrain[row]:
            int4 = wts_bits[row] == 4 and act_bits[row] == 8
            assert entry.data.dst_type == ("INT16" if act_bits[row] == 16 else "INT8")
            assert entry.weight.dst_type == ("INT4" if int4 else "INT8")
            assert entry.weight.channel_wise == (channel_wise[row] and name != "fc")
        if sparsity == "none" or (any(prune) and not prune[row]):
            assert name not in found.prune.layers
        elif sparsity == "2:4":
            assert found.prune.layers[name] == SelectivePrune(5)
        else:
            ratio = ratios[row] if any(prune) else 0.3
            assert found.prune.layers[name] == ChannelPrune(ratio, ascend_optimized=False)


def test_what_is_left_with_nothing_to_do(captured: Captured) -> None:
    with pytest.raises(WrongState, match="retrain_enable is off for every layer"):
        text_of(captured, Compression(), columns(retrain_enable=[False] * 3))
    nobody = columns(prune_enable=[False, False, True])
    order = [captured.layers[name] for name in NAMES]
    assert chosen_for_pruning(order, nobody, ratio=0.5) == {"fc": 0.2}


@pytest.mark.parametrize(
    ("method", "values", "words"),
    [
        ("qat", {"sparsity": "2:4"}, "qat takes no sparsity"),
        ("sparse", {"prune_ratio": 0.5}, "sparse takes no prune_ratio"),
        ("compressed", {"sparsity": "4:8", "prune_ratio": 1.0}, "4:8.*prune_ratio is 1.0"),
        ("compressed", {"sparsity": "none", "quantise": False}, "one of the two"),
        ("compressed", {"quantise": 1}, "quantise is 1"),
        ("sparse", {"update_freq": True}, "update_freq is True"),
    ],
)
def test_refused(method: str, values: dict[str, Any], words: str) -> None:
    with pytest.raises(WrongValue, match=words):
        compression_for(method, values)


def test_read_again_from_its_file(captured: Captured, tmp_path: Path) -> None:
    for wanted in (Compression(), Compression("channels", quantise=False), Compression("none")):
        (tmp_path / "c.cfg").write_text(text_of(captured, wanted, columns()))
        found = read_compression(tmp_path / "c.cfg")
        assert (found.sparsity, found.quantise) == (wanted.sparsity, wanted.quantise)
