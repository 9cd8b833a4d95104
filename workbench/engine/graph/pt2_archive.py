"""Reading a ``.pt2`` file without trusting it: JSON and raw tensors, nothing unpickled.

``torch.export.load`` falls back to full unpickling, so it is never called on a user's file (index
decision 10). What is read here is what ``torch.export.save`` of torch 2.8 and later writes: a zip
of stored (not compressed) members, of which the sample inputs, a pickle, are left alone.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.engine.errors import MissingFile, WrongValue

MAX_MEMBERS = 200_000
MAX_JSON = 1 << 29
MAX_UNFOLDED = 1 << 28
"""Bytes that tensors may have beyond four times the file: shared and expanded ones are few."""

UNREADABLE = (zipfile.BadZipFile, NotImplementedError, EOFError, UnicodeDecodeError, OSError)
"""What ``zipfile`` raises for a file that is damaged, or not as it writes them."""

AGAIN = "Write it with torch.export.save(torch.export.export(model, inputs), path), torch 2.8 on."

DTYPES: Mapping[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    9: torch.complex32,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
    28: torch.uint16,
    29: torch.float8_e4m3fn,
    30: torch.float8_e5m2,
}
"""Numbers of the data types in the file's schema."""


@dataclass(frozen=True)
class Pt2Archive:
    """``program``: the exported program as JSON; ``tensors``: its weights and constants by name.

    ``trained``: the names that are parameters.
    """

    path: Path
    program: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    trained: frozenset[str]


def read_pt2(path: str | Path) -> Pt2Archive:
    """Read and check an archive.

    Errors: ``MissingFile``; ``WrongValue`` for what is no archive, holds compressed members,
    pickled tensors or several models, or whose tensors do not fit their descriptions.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingFile("there is no such file", where=str(file), hint="Check the path.")
    try:
        with zipfile.ZipFile(file) as archive:
            return _read(file, archive)
    except UNREADABLE as error:
        raise _wrong(file, f"it is not an exported program ({error})", AGAIN) from error


def read_program(path: str | Path) -> dict[str, Any]:
    """The exported program of an archive as JSON, without its tensors. Errors: as ``read_pt2``."""
    file = Path(path)
    if not file.is_file():
        raise MissingFile("there is no such file", where=str(file), hint="Check the path.")
    try:
        with zipfile.ZipFile(file) as archive:
            by_name, model = _members(file, archive)
            return _json(file, archive, by_name[model])
    except UNREADABLE as error:
        raise _wrong(file, f"it is not an exported program ({error})", AGAIN) from error


def _members(file: Path, archive: zipfile.ZipFile) -> tuple[dict[str, zipfile.ZipInfo], str]:
    """The members by their names, and the name of the one that is the program."""
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise _wrong(file, f"it holds {len(members)} members; allowed: {MAX_MEMBERS}")
    # Stored members cannot be larger than the file: no bomb can unfold.
    packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise _wrong(file, f"its member {packed[0]!r} is compressed; torch stores them", AGAIN)
    if any(m.flag_bits & 1 for m in members):
        raise _wrong(file, "it is encrypted", AGAIN)
    by_name = {m.filename.partition("/")[2]: m for m in members}
    models = [n for n in by_name if n.startswith("models/") and n.endswith(".json")]
    if len(models) != 1:
        old = "serialized_exported_program.json" in {m.filename for m in members}
        said = "it was written by torch before 2.8" if old else f"it holds {len(models)} models"
        raise _wrong(file, f"{said}; allowed: one model of today's format", AGAIN)
    return by_name, models[0]


def _read(file: Path, archive: zipfile.ZipFile) -> Pt2Archive:
    by_name, model = _members(file, archive)
    program = _json(file, archive, by_name[model])
    title = Path(model).stem
    tensors: dict[str, Tensor] = {}
    trained: set[str] = set()
    left = 4 * file.stat().st_size + MAX_UNFOLDED
    for folder, name in (
        ("data/weights/", f"{title}_weights_config.json"),
        ("data/constants/", f"{title}_constants_config.json"),
    ):
        member = by_name.get(folder + name)
        if member is None:
            continue
        entries = _json(file, archive, member).get("config", {})
        if not isinstance(entries, dict):
            raise _wrong(file, f"{member.filename} must hold its tensors by name", AGAIN)
        for key, entry in entries.items():
            tensors[key] = _tensor(file, archive, by_name, folder, key, entry, left)
            left -= tensors[key].nbytes
            if entry.get("is_param"):
                trained.add(key)
    return Pt2Archive(file, program, tensors, frozenset(trained))


def _json(file: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> dict[str, Any]:
    if member.file_size > MAX_JSON:
        raise _wrong(file, f"{member.filename} has {member.file_size} bytes; allowed: {MAX_JSON}")
    try:
        data = json.loads(archive.read(member))
    except (ValueError, RecursionError) as error:
        raise _wrong(file, f"{member.filename} is not JSON ({error})", AGAIN) from error
    if not isinstance(data, dict):
        raise _wrong(file, f"{member.filename} must hold an object", AGAIN)
    return data


def _tensor(
    file: Path,
    archive: zipfile.ZipFile,
    by_name: Mapping[str, zipfile.ZipInfo],
    folder: str,
    key: str,
    entry: Any,
    left: int,
) -> Tensor:
    """One tensor of the file, which may have ``left`` bytes."""
    try:
        if entry["use_pickle"]:
            raise _wrong(file, f"tensor {key!r} is pickled, which is not read", AGAIN)
        member = by_name[folder + entry["path_name"]]
        meta = entry["tensor_meta"]
        dtype = DTYPES[meta["dtype"]]
        sizes = [int(n["as_int"]) for n in meta["sizes"]]
        strides = [int(n["as_int"]) for n in meta["strides"]]
        offset = int(meta["storage_offset"]["as_int"])
    except (KeyError, TypeError, ValueError) as error:
        what = f"the description of tensor {key!r} is not understood ({error!r})"
        raise _wrong(file, what, AGAIN) from error
    if len(strides) != len(sizes) or any(not 0 <= n < 1 << 63 for n in sizes):
        raise _wrong(file, f"tensor {key!r} cannot have the shape {sizes}", AGAIN)
    if 0 in sizes:
        return torch.empty(sizes, dtype=dtype)
    raw = bytearray(archive.read(member))
    last = offset + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    if min([offset, *strides, 0]) < 0 or (last + 1) * dtype.itemsize > len(raw):
        raise _wrong(file, f"tensor {key!r} has {len(raw)} bytes, too few for its shape {sizes}")
    # A stride of 0 makes much of little, and any number of tensors can name one member.
    if math.prod(sizes) * dtype.itemsize > left:
        raise _wrong(file, f"tensor {key!r} unfolds to more than the file holds, as {sizes}")
    flat = torch.frombuffer(raw, dtype=dtype, count=len(raw) // dtype.itemsize)
    return flat.as_strided(sizes, strides, offset).contiguous()


def _wrong(file: Path, message: str, hint: str = "") -> WrongValue:
    return WrongValue(message, where=str(file), hint=hint or "Check where the file comes from.")
