"""2:4 masks as the integers of a record file."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.engine.files.record import (
    Attr,
    PruneNode,
    PruneRecord,
    Record,
    RecordError,
    format_record,
    parse_record,
)
from workbench.engine.files.selective_record import (
    pack_mask,
    read_selective,
    selective_entry,
    unpack_mask,
)

MASK = torch.tensor([[0, 1, 1, 0, 1, 1], [1, 0, 0, 1, 1, 1]], dtype=torch.bool)


def test_the_published_example() -> None:
    assert pack_mask(MASK) == (28782,)


@given(st.lists(st.booleans(), min_size=1, max_size=200))
@settings(max_examples=40, deadline=None)
def test_packing_against_the_rule_written_out(bits: list[bool]) -> None:
    padded = bits + [False] * (-len(bits) % 64)
    data = bytes(
        sum(bit << (7 - place) for place, bit in enumerate(padded[at : at + 8]))
        for at in range(0, len(padded), 8)
    )
    wanted = struct.unpack(f"<{len(data) // 8}q", data)
    mask = torch.tensor(bits)
    assert pack_mask(mask) == wanted
    assert torch.equal(unpack_mask(wanted, (len(bits),)), mask)


def test_an_entry_survives_the_file() -> None:
    text = format_record(Record(prune=(selective_entry("block.fc", MASK),)))
    for line in ('name: "mask_shape"', "type: INTS", "ints: 2", "ints: 6", "ints: 28782"):
        assert line in text
    found = read_selective(parse_record(text, source="r").prune, source="r")
    shape, mask = found["block.fc"]
    assert shape == (2, 6)
    assert torch.equal(mask, MASK)


def test_entries_that_do_not_fit() -> None:
    def entry(*attributes: Attr) -> PruneRecord:
        return PruneRecord(selective_prune=PruneNode("fc", attributes))

    shape = Attr("mask_shape", "INTS", ints=(2, 6))
    assert read_selective([entry(shape)], source="r") == {"fc": ((2, 6), None)}
    for records, words in (
        ([entry()], "no mask_shape"),
        ([entry(shape, Attr("selective_mask", "INTS", ints=(1, 2)))], "2 integers for 12"),
        ([entry(shape), entry(shape)], "more than once"),
    ):
        with pytest.raises(RecordError, match=rf"r, layer fc: .*{words}"):
            read_selective(records, source="r")
