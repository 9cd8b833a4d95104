"""2:4 masks in a record file: 64 of them in an integer.

Source: specification chapter 40 sections 4.3 and 5. Bits are row-major, eight a byte, the most
significant first, padded with zeros to whole integers of eight bytes, which are read little-endian.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import numpy as np
import torch
from torch import Tensor

from workbench.engine.files.record import Attr, PruneNode, PruneRecord, RecordError

_SHAPE, _MASK = "mask_shape", "selective_mask"


def pack_mask(mask: Tensor) -> tuple[int, ...]:
    """A bool mask as signed 64-bit integers."""
    data = np.packbits(mask.cpu().numpy().reshape(-1)).tobytes()
    data += bytes(-len(data) % 8)
    return tuple(np.frombuffer(data, dtype="<i8").tolist())


def unpack_mask(values: Iterable[int], shape: tuple[int, ...]) -> Tensor:
    """The mask of ``shape`` in ``values``; ``ValueError`` when their number does not fit."""
    packed = np.array(tuple(values), dtype="<i8")
    count = prod(shape)
    if len(packed) != -(-count // 64):
        raise ValueError(f"{len(packed)} integers for {count} weights")
    bits = np.unpackbits(np.frombuffer(packed.tobytes(), dtype=np.uint8), count=count)
    return torch.from_numpy(bits.astype(bool)).reshape(shape)


def selective_entry(name: str, mask: Tensor) -> PruneRecord:
    """The record's entry for the layer ``name``."""
    attributes = (
        Attr(_SHAPE, "INTS", ints=tuple(mask.shape)),
        Attr(_MASK, "INTS", ints=pack_mask(mask)),
    )
    return PruneRecord(selective_prune=PruneNode(name, attributes))


def read_selective(
    records: Iterable[PruneRecord], *, source: str
) -> dict[str, tuple[tuple[int, ...], Tensor | None]]:
    """Shape and mask of every layer with a 2:4 entry; no mask before the reference's training.

    Raises ``RuntimeError`` for a layer named twice, a missing shape, or a mask that does not fit.
    """
    found: dict[str, tuple[tuple[int, ...], Tensor | None]] = {}
    for entry in records:
        node = entry.selective_prune
        if node is None:
            continue
        where = f"{source}, layer {node.name}"
        if node.name in found:
            raise RecordError("its 2:4 entry is given more than once", where=where)
        attributes = {attribute.name: attribute.ints for attribute in node.attr}
        shape = attributes.get(_SHAPE)
        if not shape:
            raise RecordError(f"its 2:4 entry has no {_SHAPE}", where=where)
        mask = attributes.get(_MASK)
        try:
            found[node.name] = (shape, unpack_mask(mask, shape) if mask else None)
        except ValueError as error:
            raise RecordError(f"{_MASK} does not fit {_SHAPE}: {error}", where=where) from None
    return found
