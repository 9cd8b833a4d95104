from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from hypothesis import given
from hypothesis import strategies as st

from workbench.engine.files.proto_schema import message_class, parse_proto
from workbench.engine.files.record import (
    KVCacheRecord,
    LayerRecord,
    Record,
    format_record,
    parse_record,
    read_record,
    write_record,
)
from workbench.engine.files.record_checks import check_record

SAMPLE = """record {
  key: "stem.conv"
  value {
    scale_d: 0.0125
    offset_d: -7
    scale_w: 0.0031
    scale_w: 0.0028
    offset_w: 0
    offset_w: 0
    tensor_balance_factor: 1.25
    tensor_balance_factor: 0.75
    tensor_balance_factor: 2
    act_type: "INT8"
    wts_type: "INT7"
  }
}
record { key: "pool" value { scale_d: 0.02 offset_d: -128 scale_w: 1 offset_w: 0 act_type: "INT8" } }
record { key: "attn.k_proj" kv_cache_value { scale: 0.031 offset: 4 } }
prune_record {
  producer { name: "stem.conv" attr { name: "type" type: STRING s: "Conv" }
    attr { name: "begin" type: INT i: 0 } attr { name: "end" type: INT i: 2 } }
  consumer { name: "body.conv" attr { name: "begin" type: INT i: 0 } attr { name: "end" type: INT i: 2 } }
}
"""  # noqa: E501


def test_the_sample_of_the_specification() -> None:
    record = parse_record(SAMPLE, source="r.txt")
    conv = record.layers["stem.conv"]
    assert conv.scale_d == float(np.float32(0.0125))
    assert conv.offset_d == -7
    assert conv.scale_w == tuple(float(np.float32(s)) for s in (0.0031, 0.0028))
    assert conv.tensor_balance_factor == (1.25, 0.75, 2.0)
    assert (conv.act_bits, conv.wts_bits) == (8, 7)
    assert record.layers["pool"].wts_type is None
    assert record.kv_cache["attn.k_proj"] == KVCacheRecord((float(np.float32(0.031)),), (4,))
    assert record.prune[0].producer[0].attr[0].s == b"Conv"
    assert record.prune[0].consumer[0].attr[1].i == 2
    assert record.names() == ("stem.conv", "pool", "attn.k_proj")
    check_record(record, "r.txt")


def test_writing_is_stable_and_shortest() -> None:
    text = format_record(parse_record(SAMPLE, source="r.txt"))
    assert format_record(parse_record(text, source="r.txt")) == text
    assert text.startswith(SAMPLE[: SAMPLE.index("    tensor_balance")])
    assert text.endswith("\n")


def test_order_of_the_file_is_kept() -> None:
    text = 'record { key: "b" kv_cache_value { scale: 1 offset: 0 } } record { key: "a" value { } }'
    record = parse_record(text, source="r")
    assert record.names() == ("b", "a")
    more = Record({**record.layers, "0": LayerRecord()}, record.kv_cache, (), record.order)
    assert more.names() == ("b", "a", "0")
    assert parse_record(format_record(more), source="r").names() == ("b", "a", "0")


@given(st.lists(st.floats(width=32, min_value=2.0**-126, max_value=2.0**127), max_size=5))
def test_every_float32_reads_back_exactly(scales: list[float]) -> None:
    record = Record({"a": LayerRecord(scale_w=tuple(scales))}, order=("a",))
    assert parse_record(format_record(record), source="r") == record


def test_older_files_with_nine_digits() -> None:
    record = parse_record(
        'record { key: "a" value { scale_d: 0.0234291125 scale_w: 1.00000001e-07 } }', source="r"
    )
    assert record.layers["a"].scale_d == float(np.float32(0.0234291125))
    assert "scale_d: 0.023429113\n" in format_record(record)


def test_last_of_a_repeated_optional_field_wins() -> None:
    text = 'record { key: "a" value { scale_d: 1 scale_d: 2 } }'
    assert parse_record(text, source="r").layers["a"].scale_d == 2.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('record {\n  key: "a"\n  colour: 3\n}', r"r\.txt, line 3.*colour"),
        ("record {\n", "line"),
        ('record { key: "a" value {} }\nrecord { key: "a" value {} }', "line 2.*more than once"),
        ("record { value {} }", "no key"),
        ('record { key: "a" }', "no value"),
        ('record { key: "a" value { shift_bit: 1 } }', "shift_bit"),
        ("prune_record { producer { } }", "name"),
    ],
)
def test_what_cannot_be_read(text: str, words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        parse_record(text, source="r.txt")


GOOD = {"scale_d": 0.5, "offset_d": 3, "scale_w": (1.0,), "offset_w": (0,), "act_type": "INT8"}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"offset_d": 128}, ValueError),
        ({"offset_d": -129, "act_type": "INT4"}, ValueError),
        ({"offset_d": 32768, "act_type": "INT16"}, ValueError),
        ({"offset_w": (1,)}, ValueError),
        ({"scale_d": 0.0}, ValueError),
        ({"scale_d": float("inf")}, ValueError),
        ({"scale_w": (float("nan"),)}, ValueError),
        ({"tensor_balance_factor": (1e-8,)}, ValueError),
        ({"scale_w": (1.0, 2.0)}, RuntimeError),
        ({"scale_d": None}, RuntimeError),
        ({"offset_d": None}, RuntimeError),
        ({"scale_w": ()}, RuntimeError),
        ({"offset_w": ()}, RuntimeError),
        ({"act_type": "INT7"}, RuntimeError),
        ({"wts_type": "INT16"}, RuntimeError),
        ({"dst_type": "INT16"}, RuntimeError),
        ({"fakequant_precision_mode": "FP16"}, RuntimeError),
    ],
)
def test_checks_without_a_graph(change: dict[str, object], error: type[Exception]) -> None:
    check_record(Record({"a": LayerRecord(**GOOD)}), "r")  # type: ignore[arg-type]
    with pytest.raises(error, match=r"layer a"):
        check_record(Record({"a": LayerRecord(**{**GOOD, **change})}), "r")  # type: ignore[arg-type]


def test_an_empty_record_and_a_record_with_both_kinds_of_fault() -> None:
    with pytest.raises(RuntimeError, match="no entry"):
        check_record(parse_record("", source="r"), "r")
    both = LayerRecord(scale_w=(-1.0,), offset_w=(0,))
    with pytest.raises(ValueError) as caught:
        check_record(Record({"a": both}), "r")
    assert isinstance(caught.value, RuntimeError)


def test_wide_offsets_of_sixteen_bits() -> None:
    layer = LayerRecord(**{**GOOD, "offset_d": -8367, "act_type": "INT16"})  # type: ignore[arg-type]
    check_record(Record({"a": layer}), "r")
    assert layer.act_bits == 16
    assert LayerRecord(dst_type="INT4", act_type="INT16").act_bits == 4


def test_files(tmp_path: Path) -> None:
    record = parse_record(SAMPLE, source="r")
    write_record(tmp_path / "r.txt", record)
    assert read_record(tmp_path / "r.txt") == record
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "none.txt")


def test_the_schema_reader_agrees_with_protoc_on_the_schema_of_onnx() -> None:
    text = (resources.files("onnx") / "onnx.proto").read_text("utf-8")
    # ONNX uses these two and we do not; they take no part in the comparison.
    lines = [
        line for line in text.splitlines() if not line.strip().startswith(("reserved", "option "))
    ]
    ours = parse_proto("\n".join(lines), "onnx/onnx.proto")
    compiled = descriptor_pb2.FileDescriptorProto()
    onnx.ModelProto.DESCRIPTOR.file.CopyToProto(compiled)

    def fields(
        message: descriptor_pb2.DescriptorProto, prefix: str = ""
    ) -> set[tuple[object, ...]]:
        path = f"{prefix}.{message.name}"
        found: set[tuple[object, ...]] = {
            (path, f.name, f.number, f.label, f.type_name.split(".")[-1]) for f in message.field
        }
        for nested in message.nested_type:
            found |= fields(nested, path)
        for enum in message.enum_type:
            found |= {(path, enum.name, v.name, v.number) for v in enum.value}
        return found

    def everything(file: descriptor_pb2.FileDescriptorProto) -> set[tuple[object, ...]]:
        return set().union(*(fields(message) for message in file.message_type))

    assert everything(ours) == everything(compiled)


def test_our_classes_leave_the_process_wide_pool_alone() -> None:
    message_class("scale_offset_record.proto", "AMCTPytorchProto.ScaleOffsetRecord")
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("AMCTPytorchProto.ScaleOffsetRecord")
