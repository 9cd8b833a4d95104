"""The retraining text format's wire numbers, one field at a time (chapter 30 section 3.2)."""

from __future__ import annotations

from typing import Any

import pytest

from workbench.engine.files.proto_schema import message_class

# (message, field, value in Python or a sub-message, the bytes protobuf must write).
# A varint field n has tag 8n, a length-delimited one 8n+2, a 32-bit one 8n+5.
GOLDEN: list[tuple[str, str, Any, bytes]] = [
    ("AMCTRetrainConfig", "batch_num", 3, bytes([8, 3])),
    ("AMCTRetrainConfig", "retrain_data_quant_config", None, bytes([18, 0])),
    ("AMCTRetrainConfig", "retrain_weight_quant_config", None, bytes([26, 0])),
    ("AMCTRetrainConfig", "skip_layers", ["a"], b"\x22\x01a"),
    ("AMCTRetrainConfig", "skip_layer_types", ["a"], b"\x32\x01a"),
    ("AMCTRetrainConfig", "prune_config", None, bytes([66, 0])),
    ("AMCTRetrainConfig", "regular_prune_skip_layers", ["a"], b"\x4a\x01a"),
    ("AMCTRetrainConfig", "regular_prune_skip_types", ["a"], b"\x52\x01a"),
    ("AMCTRetrainConfig", "quant_skip_layers", ["a"], b"\x5a\x01a"),
    ("AMCTRetrainConfig", "quant_skip_types", ["a"], b"\x62\x01a"),
    ("AMCTRetrainConfig", "fakequant_precision_mode", 1, b"\xa8\x01\x01"),
    ("RetrainDataQuantConfig", "ulq_quantize", None, bytes([106, 0])),
    ("ActULQquantize", "clip_max_min.clip_max", 1.0, b"\x0a\x05\x1d\x00\x00\x80\x3f"),
    ("ActULQquantize", "clip_max_min.clip_min", 1.0, b"\x0a\x05\x2d\x00\x00\x80\x3f"),
    ("ActULQquantize", "fixed_min", True, bytes([16, 1])),
    ("ActULQquantize", "dst_type", 2, bytes([24, 2])),
    ("RetrainWeightQuantConfig", "arq_retrain", None, bytes([10, 0])),
    ("RetrainWeightQuantConfig", "ulq_retrain", None, bytes([18, 0])),
    ("ARQRetrain", "dst_type", 0, bytes([8, 0])),
    ("ARQRetrain", "channel_wise", True, bytes([16, 1])),
    ("WtsULQRetrain", "dst_type", 1, bytes([8, 1])),
    ("WtsULQRetrain", "channel_wise", False, bytes([16, 0])),
    ("RetrainOverrideLayer", "layer_name", "a", b"\x0a\x01a"),
    ("RetrainOverrideLayer", "retrain_data_quant_config", None, bytes([18, 0])),
    ("RetrainOverrideLayer", "retrain_weight_quant_config", None, bytes([26, 0])),
    ("RetrainOverrideLayer", "prune_config", None, bytes([34, 0])),
    ("RetrainOverrideLayerType", "layer_type", "a", b"\x0a\x01a"),
    ("RetrainOverrideLayerType", "retrain_data_quant_config", None, bytes([18, 0])),
    ("RetrainOverrideLayerType", "retrain_weight_quant_config", None, bytes([26, 0])),
    ("RetrainOverrideLayerType", "prune_config", None, bytes([34, 0])),
    ("PruneConfig", "filter_pruner", None, bytes([10, 0])),
    ("PruneConfig", "n_out_of_m_pruner", None, bytes([18, 0])),
    ("FilterPruner", "balanced_l2_norm_filter_prune", None, bytes([10, 0])),
    ("BalancedL2NormFilterPruner", "prune_ratio", 0.5, b"\x0d\x00\x00\x00\x3f"),
    ("BalancedL2NormFilterPruner", "ascend_optimized", False, bytes([16, 0])),
    ("NOutOfMPruner", "l1_selective_prune", None, bytes([10, 0])),
    ("L1SelectivePruner", "n_out_of_m_type", 0, bytes([8, 0])),
    ("L1SelectivePruner", "update_freq", 7, bytes([16, 7])),
]


def new(name: str) -> Any:
    return message_class("retrain_config_pytorch.proto", f"AMCTPytorchProto.{name}")()


@pytest.mark.parametrize(("name", "field", "value", "wire"), GOLDEN, ids=lambda v: str(v)[:40])
def test_wire_numbers(name: str, field: str, value: Any, wire: bytes) -> None:
    message = new(name)
    target = message
    *parents, last = field.split(".")
    for parent in parents:
        target = getattr(target, parent)
    if value is None:
        getattr(target, last).SetInParent()
    elif isinstance(value, list):
        getattr(target, last).extend(value)
    else:
        setattr(target, last, value)
    assert message.SerializePartialToString() == wire


@pytest.mark.parametrize(
    ("field", "tag"), [("override_layer_configs", 42), ("override_layer_types", 58)]
)
def test_wire_numbers_of_overrides(field: str, tag: int) -> None:
    message = new("AMCTRetrainConfig")
    getattr(message, field).add()
    assert message.SerializePartialToString() == bytes([tag, 0])


def test_every_field_has_its_golden_bytes() -> None:
    covered = {(name, field.split(".")[0]) for name, field, _, _ in GOLDEN}
    covered |= {("AMCTRetrainConfig", f"override_layer_{kind}") for kind in ("configs", "types")}
    names = {name for name, _ in covered}
    fields = {(n, f.name) for n in names for f in new(n).DESCRIPTOR.fields}
    assert fields == covered
    assert [f.name for f in new("ClipMaxMin").DESCRIPTOR.fields] == ["clip_max", "clip_min"]


def test_defaults() -> None:
    assert new("AMCTRetrainConfig").batch_num == 1
    assert new("ActULQquantize").dst_type == new("ARQRetrain").dst_type == 1
    assert new("BalancedL2NormFilterPruner").ascend_optimized is True
    assert new("L1SelectivePruner").update_freq == 0
