"""The record file: what calibration found for each layer, as protobuf text."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import text_format

from workbench.engine.errors import WorkbenchError
from workbench.engine.files.atomic import write_text
from workbench.engine.files.proto_schema import message_class
from workbench.engine.files.reading import read_text

logger = logging.getLogger("workbench.engine.files")

BITS = {"INT4": 4, "INT6": 6, "INT7": 7, "INT8": 8, "INT16": 16}


class RecordError(WorkbenchError, RuntimeError):
    """A record file that cannot be read, or is incomplete."""


@dataclass(frozen=True)
class LayerRecord:
    """One layer's factors (chapter 10 section 12.1); None or empty: not in the file.

    Scales are float32 values; ``scale_w`` holds one value or one per output channel.
    """

    scale_d: float | None = None
    offset_d: int | None = None
    scale_w: tuple[float, ...] = ()
    offset_w: tuple[int, ...] = ()
    tensor_balance_factor: tuple[float, ...] = ()
    skip_fusion: bool | None = None
    dst_type: str | None = None
    act_type: str | None = None
    wts_type: str | None = None
    fakequant_precision_mode: str | None = None
    scale_h: float | None = None
    offset_h: int | None = None
    scale_r: tuple[float, ...] = ()
    offset_r: tuple[int, ...] = ()

    @property
    def act_bits(self) -> int:
        """Width of the activation: ``dst_type`` decides, else ``act_type``, else 8."""
        return BITS[self.dst_type or self.act_type or "INT8"]

    @property
    def wts_bits(self) -> int:
        """Width of the weight: ``dst_type`` decides, else ``wts_type``, else 8."""
        return BITS[self.dst_type or self.wts_type or "INT8"]


@dataclass(frozen=True)
class KVCacheRecord:
    """Factors of a key-value cache: one value, or one per channel of the last axis."""

    scale: tuple[float, ...] = ()
    offset: tuple[int, ...] = ()


@dataclass(frozen=True)
class Attr:
    """A named attribute of a pruned node; ``type`` is a name of ``AttrProto.AttrType``."""

    name: str | None = None
    type: str | None = None
    f: float | None = None
    i: int | None = None
    s: bytes | None = None
    floats: tuple[float, ...] = ()
    ints: tuple[int, ...] = ()
    strings: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class PruneNode:
    """A module that takes part in a group of coupled channels."""

    name: str
    attr: tuple[Attr, ...] = ()


@dataclass(frozen=True)
class PruneRecord:
    """A group of coupled channels, or one module's 2:4 mask."""

    producer: tuple[PruneNode, ...] = ()
    consumer: tuple[PruneNode, ...] = ()
    selective_prune: PruneNode | None = None


@dataclass(frozen=True)
class Record:
    """A whole record file. ``order`` keeps the file's order of keys; new ones follow."""

    layers: Mapping[str, LayerRecord] = field(default_factory=dict)
    kv_cache: Mapping[str, KVCacheRecord] = field(default_factory=dict)
    prune: tuple[PruneRecord, ...] = ()
    order: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """All keys, in the order in which they are written."""
        known = [key for key in self.order if key in self.layers or key in self.kv_cache]
        return tuple(dict.fromkeys([*known, *self.layers, *self.kv_cache]))


def parse_record(text: str, *, source: str) -> Record:
    """Read protobuf text; ``RuntimeError`` naming ``source`` and the line when it is not a record.

    Also raised for an entry without key or value, a key given twice, and ``shift_bit``.
    An empty text is an empty record; ``check_record`` refuses it.
    """
    message = _message()
    try:
        text_format.Merge(text, message)
    except text_format.ParseError as error:
        line = error.GetLine() or 1
        reason = re.sub(r"^\d+:\d+ : ", "", str(error))
        raise RecordError(reason, where=f"{source}, line {line}") from None
    if not message.IsInitialized():
        missing = ", ".join(message.FindInitializationErrors())
        raise RecordError(f"required fields are missing: {missing}", where=source)
    layers: dict[str, LayerRecord] = {}
    kv_cache: dict[str, KVCacheRecord] = {}
    order: list[str] = []
    for number, entry in enumerate(message.record):
        key = entry.key
        where = f"{source}, line {_line(text, number)}"
        if not key:
            raise RecordError("an entry has no key", where=where)
        if key in order:
            raise RecordError(
                f"the key {key!r} is given more than once.", where=where, hint="Keep one entry."
            )
        if not entry.HasField("value") and not entry.HasField("kv_cache_value"):
            raise RecordError(f"the entry {key!r} has no value", where=where)
        order.append(key)
        if entry.HasField("value"):
            if entry.value.shift_bit:
                raise RecordError(
                    f"the entry {key!r} holds shift_bit, which is reserved", where=where
                )
            layers[key] = _from_message(LayerRecord, entry.value)
        if entry.HasField("kv_cache_value"):
            kv_cache[key] = _from_message(KVCacheRecord, entry.kv_cache_value)
    prune = tuple(_prune_from_message(item) for item in message.prune_record)
    return Record(layers, kv_cache, prune, tuple(order))


def format_record(record: Record) -> str:
    """The file's text: fields by number, floats in the shortest form that reads back exactly."""
    message = _message()
    for key in record.names():
        entry = message.record.add(key=key)
        if key in record.layers:
            entry.value.SetInParent()
            _to_message(record.layers[key], entry.value)
        if key in record.kv_cache:
            entry.kv_cache_value.SetInParent()
            _to_message(record.kv_cache[key], entry.kv_cache_value)
    for group in record.prune:
        target = message.prune_record.add()
        for node in group.producer:
            _prune_node(node, target.producer.add())
        for node in group.consumer:
            _prune_node(node, target.consumer.add())
        if group.selective_prune is not None:
            _prune_node(group.selective_prune, target.selective_prune)
    text: str = text_format.MessageToString(message, as_utf8=True)
    return text


def read_record(path: str | os.PathLike[str]) -> Record:
    """``parse_record`` of a file; ``FileNotFoundError`` when it is missing."""
    return parse_record(read_text(path, what="record file"), source=str(path))


def write_record(
    path: str | os.PathLike[str], record: Record, *, warn_if_exists: bool = False
) -> None:
    """Write ``format_record`` to ``path`` atomically."""
    write_text(path, format_record(record), warn_if_exists=warn_if_exists)


def _message() -> Any:
    return message_class("scale_offset_record.proto", "AMCTPytorchProto.ScaleOffsetRecord")()


def _line(text: str, number: int) -> int:
    """Line of the ``number``-th entry, to help the reader of an error; 1 when it is not found."""
    without_strings = re.sub(r'"(?:\\.|[^"\\\n])*"', lambda m: '"' * len(m.group()), text)
    starts = [m.start() for m in re.finditer(r"(?<!\w)record\s*:?\s*[{<]", without_strings)]
    return text.count("\n", 0, starts[number]) + 1 if number < len(starts) else 1


def _from_message(cls: type[Any], message: Any) -> Any:
    values: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        name = descriptor.name
        if name == "type":
            values[name] = descriptor.enum_type.values_by_number[value].name
        elif isinstance(value, str | bytes | int | float):
            values[name] = value
        else:
            values[name] = tuple(value)
    return cls(**values)


def _to_message(values: Any, message: Any) -> None:
    for name, value in vars(values).items():
        if isinstance(value, tuple):
            getattr(message, name).extend(value)
        elif name == "type" and value is not None:
            message.type = message.AttrType.Value(value)
        elif value is not None:
            setattr(message, name, value)


def _prune_from_message(message: Any) -> PruneRecord:
    def nodes(items: Iterable[Any]) -> tuple[PruneNode, ...]:
        return tuple(
            PruneNode(node.name, tuple(_from_message(Attr, attr) for attr in node.attr))
            for node in items
        )

    selective = nodes([message.selective_prune]) if message.HasField("selective_prune") else ()
    return PruneRecord(
        nodes(message.producer), nodes(message.consumer), selective[0] if selective else None
    )


def _prune_node(node: PruneNode, message: Any) -> None:
    message.name = node.name
    for attr in node.attr:
        _to_message(attr, message.attr.add())
