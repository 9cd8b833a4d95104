"""Prune records as plug-ins of the channel search read and write them: protobuf messages.

Source: specification chapter 40 section 6.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.engine.errors import WrongState, WrongValue
from workbench.engine.files.proto_schema import message_class
from workbench.engine.files.record import Record, format_record
from workbench.engine.files.text_message import merge_text
from workbench.engine.flows.channel_surgery import Removal
from workbench.engine.flows.prune_record import group_record
from workbench.engine.graph.capture import Captured
from workbench.engine.graph.channel_groups import ChannelGroup

_FIELDS = {
    "FLOAT": "f", "INT": "i", "STRING": "s", "FLOATS": "floats", "INTS": "ints",
    "STRINGS": "strings",
}  # fmt: skip

SENSITIVITY = "sensitivity"


class AttrProtoHelper:
    """Attributes of a node of a prune record, by name."""

    def __init__(self, node: Any) -> None:
        self._node = node

    def has_attr(self, name: str) -> bool:
        return any(attr.name == name for attr in self._node.attr)

    def get_attr_value(self, name: str) -> Any:
        """Its value: a number, bytes, or a list of them; ``RuntimeError`` when it is not there."""
        for attr in self._node.attr:
            if attr.name == name:
                field = _FIELDS[type(attr).AttrType.Name(attr.type)]
                value = getattr(attr, field)
                return list(value) if field.endswith("s") and field != "s" else value
        raise WrongState(f"has no attribute {name!r}", where=self._node.name)

    def set_attr_value(self, name: str, type_string: str, value: Any) -> None:
        """Set an attribute; ``type_string`` is FLOAT, INT, STRING, FLOATS, INTS or STRINGS."""
        if type_string not in _FIELDS:
            raise WrongValue(
                f"attribute {name!r} has type {type_string!r}; allowed: {', '.join(_FIELDS)}",
                where=self._node.name,
            )
        for attr in [a for a in self._node.attr if a.name == name]:
            self._node.attr.remove(attr)
        attr = self._node.attr.add(name=name)
        attr.type = type(attr).AttrType.Value(type_string)
        field = _FIELDS[type_string]
        if field.endswith("s") and field != "s":
            getattr(attr, field).extend(value)
        else:
            setattr(attr, field, value.encode() if isinstance(value, str) else value)


def search_records(captured: Captured, groups: Sequence[ChannelGroup]) -> Any:
    """One ``PruneRecord`` message for every group, without ``prune_index``."""
    flat = {name: len(info.input_shape) == 2 for name, info in captured.layers.items()}
    records = (group_record(Removal(g, ()), captured.module, flat=flat) for g in groups)
    message = message_class("scale_offset_record.proto", "AMCTPytorchProto.ScaleOffsetRecord")()
    merge_text(format_record(Record(prune=tuple(records))), message, source="search records")
    return message.prune_record


def write_sensitivity(record: Any, group: ChannelGroup, values: NDArray[np.float64]) -> None:
    """Give every producer node the sensitivity of its channels; a unit's is divided among them."""
    members = {member.module: member for member in group.producers}
    for node in record.producer:
        units = _node_units(node, members[node.name].units)
        counts = np.bincount(units[units >= 0], minlength=group.size)
        shares = [float(values[unit] / counts[unit]) if unit >= 0 else 0.0 for unit in units]
        AttrProtoHelper(node).set_attr_value(SENSITIVITY, "FLOATS", shares)


def read_sensitivity(record: Any, group: ChannelGroup, *, author: str) -> NDArray[np.float64]:
    """The sensitivity of each unit from the first node that speaks of it.

    Raises ``ValueError`` naming ``author`` when the first producer has none, or one of another
    length, or a value that is no number.
    """
    members = {member.module: member for member in group.producers}
    values = np.full(group.size, np.nan)
    for position, node in enumerate(record.producer):
        helper = AttrProtoHelper(node)
        units = _node_units(node, members[node.name].units)
        if not helper.has_attr(SENSITIVITY):
            if position == 0:
                _refuse(author, node.name, "is not set", len(units))
            continue
        given = np.asarray(helper.get_attr_value(SENSITIVITY), np.float64).reshape(-1)
        if len(given) != len(units):
            _refuse(author, node.name, f"has {len(given)} values", len(units))
        if not np.isfinite(given).all():
            _refuse(author, node.name, "holds inf or NaN", len(units))
        inside = units >= 0
        sums = np.bincount(units[inside], weights=given[inside], minlength=group.size)
        new = np.isnan(values) & (np.bincount(units[inside], minlength=group.size) > 0)
        values[new] = sums[new]
    # Units that no node speaks of go with others of their group, whose values decide.
    result: NDArray[np.float64] = np.nan_to_num(values)
    return result


def _node_units(node: Any, units: NDArray[np.int64]) -> NDArray[np.int64]:
    helper = AttrProtoHelper(node)
    return units[helper.get_attr_value("begin") : helper.get_attr_value("end")]


def _refuse(author: str, producer: str, what: str, wanted: int) -> None:
    raise WrongValue(
        f"the attribute 'sensitivity' of producer {producer} {what}; allowed: {wanted} finite "
        "numbers, one for each channel from begin to end",
        where=f"{author}.get_sensitivity()",
    )
