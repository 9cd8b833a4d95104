"""Chapter 10 section 15, Config row 5: the fields by number."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from workbench.engine.files.proto_schema import message_class
from workbench.engine.files.text_config import parse_text_config

SCALARS = {"uint32": 13, "bool": 8, "string": 9, "float": 2}
# message -> (number, label: 1 optional, 2 required, 3 repeated; type)
TABLE: dict[str, list[tuple[int, int, str]]] = {
    "AMCTConfig": [
        (1, 1, "uint32"), (2, 1, "bool"), (10, 3, "string"), (11, 3, "string"), (21, 1, "enum"),
        (50, 1, "CalibrationConfig"), (51, 3, "OverrideLayerType"), (100, 3, "OverrideLayer"),
        (200, 1, "bool"), (201, 3, "string"),
    ],
    "OverrideLayerType": [(1, 2, "string"), (2, 2, "CalibrationConfig")],
    "OverrideLayer": [(1, 2, "string"), (2, 2, "CalibrationConfig")],
    "CalibrationConfig": [
        (13, 1, "ARQuantize"), (15, 1, "ADAquantize"), (100, 1, "FMRQuantize"),
        (101, 1, "HFMGQuantize"), (200, 1, "DMQBalancer"),
    ],
    "ARQuantize": [(1, 1, "bool"), (10, 1, "uint32")],
    "ADAquantize": [
        (1, 1, "uint32"), (2, 1, "float"), (3, 1, "float"), (4, 1, "float"), (5, 1, "float"),
        (10, 1, "bool"),
    ],
    "DMQBalancer": [(1, 1, "float")],
    "FMRQuantize": [
        (1, 1, "float"), (2, 1, "float"), (3, 1, "float"), (4, 1, "float"), (5, 1, "float"),
        (6, 1, "bool"), (10, 1, "enum"),
    ],
    "HFMGQuantize": [(1, 1, "uint32"), (2, 1, "bool"), (10, 1, "enum")],
}  # fmt: skip


def table_class(name: str) -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="table.proto", package="t")
    enum = file.enum_type.add(name="Enum")
    enum.value.add(name="ONE", number=1)
    enum.value.add(name="TWO", number=2)
    for message, fields in TABLE.items():
        described = file.message_type.add(name=message)
        for number, label, kind in fields:
            field = described.field.add(name=f"f{number}", number=number, label=label)
            if kind in SCALARS:
                field.type = SCALARS[kind]
            else:
                field.type = 14 if kind == "enum" else 11
                field.type_name = ".t.Enum" if kind == "enum" else f".t.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"t.{name}"))


def as_numbers(message: Any) -> Any:
    """A message as nested lists of (field number, value), however its fields are called."""

    def plain(value: Any) -> Any:
        return as_numbers(value) if hasattr(value, "ListFields") else value

    return [
        (
            field.number,
            [plain(item) for item in value]
            if hasattr(value, "append") or hasattr(value, "add")
            else plain(value),
        )
        for field, value in message.ListFields()
    ]


EVERYTHING = """
batch_num: 3
activation_offset: false
fakequant_precision_mode: FORCE_FP16_QUANT
do_fusion: false
skip_fusion_layers: "a"
skip_layer_types: "T"
skip_layers: "l"
common_config { arq_quantize { channel_wise: true quant_bits: 7 } dmq_balancer {
    migration_strength: 0.3 } }
override_layer_types { layer_type: "T" calibration_config {
    hfmg_quantize { num_of_bins: 8192 asymmetric: true dst_type: INT16 } } }
override_layer_configs { layer_name: "L" calibration_config {
    ifmr_quantize { search_range_start: 0.8 search_range_end: 1.2 search_step: 0.05
        max_percentile: 0.99 min_percentile: 0.98 asymmetric: true dst_type: INT16 }
    ada_quantize { num_iteration: 7 reg_param: 0.02 beta_range_start: 15 beta_range_end: 3
        warm_start: 0.3 channel_wise: false } } }
"""


def test_fields_have_the_numbers_of_the_table() -> None:
    ours = parse_text_config(EVERYTHING, source="x").message
    theirs = table_class("AMCTConfig").FromString(ours.SerializeToString())
    seen = as_numbers(ours)
    assert as_numbers(theirs) == seen
    assert not list(ours.FindInitializationErrors())
    back = type(ours).FromString(theirs.SerializeToString())
    assert back == ours


def test_every_field_of_the_table_is_in_our_schema_and_no_other() -> None:
    for name, fields in TABLE.items():
        descriptor = message_class("amct_config.proto", f"AMCTPytorchProto.{name}").DESCRIPTOR
        described = descriptor_pb2.DescriptorProto()
        descriptor.CopyToProto(described)
        found = [
            (f.number, f.label, f.type_name.rpartition(".")[2] or f.type)
            for f in sorted(described.field, key=lambda f: f.number)
        ]
        wanted = [(number, label, SCALARS.get(kind, kind)) for number, label, kind in fields]
        enums = {"FakequantPrecisionMode": "enum", "CalibrationDataType": "enum"}
        assert [(n, label, enums.get(kind, kind)) for n, label, kind in found] == wanted
    groups = {
        oneof.name: sorted(field.number for field in oneof.fields)
        for oneof in message_class(
            "amct_config.proto", "AMCTPytorchProto.CalibrationConfig"
        ).DESCRIPTOR.oneofs
    }
    assert groups == {
        "wts_quant_algo": [13, 15],
        "acts_quant_algo": [100, 101],
        "tensor_balancer": [200],
    }


DEFAULTS = {
    "AMCTConfig": {1: 1, 2: True, 200: True},
    "ADAquantize": {1: 10000, 2: 0.01, 3: 20, 4: 2, 5: 0.2},
    "DMQBalancer": {1: 0.5},
    "FMRQuantize": {1: 0.7, 2: 1.3, 3: 0.01, 4: 0.999999, 5: 0.999999, 10: 1},
    "HFMGQuantize": {1: 4096, 10: 1},
}


@pytest.mark.parametrize(("name", "expected"), DEFAULTS.items())
def test_defaults_are_those_of_the_table(name: str, expected: dict[int, Any]) -> None:
    fields = message_class(
        "amct_config.proto", f"AMCTPytorchProto.{name}"
    ).DESCRIPTOR.fields_by_number
    for number, value in expected.items():
        assert fields[number].default_value == pytest.approx(value, rel=1e-7)
