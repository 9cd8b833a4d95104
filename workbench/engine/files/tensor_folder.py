"""Folders of safetensors files as Hugging Face writes them: shards and an index."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from workbench.engine.errors import MissingFile, WrongValue
from workbench.engine.files.atomic import replace_on_success, write_text
from workbench.engine.files.config_json import load_json
from workbench.engine.files.reading import read_text

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies, and what it is."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


class TensorFolder:
    """The tensors of a folder by name; nothing is loaded before it is asked for.

    Reads ``model.safetensors.index.json`` and its shards, else ``model.safetensors``. Errors:
    ``FileNotFoundError`` when neither or a shard is there; ``ValueError`` for an index that leads
    out of the folder, a file that is no safetensors file or a type of numbers we do not know.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.tensors: dict[str, StoredTensor] = {}
        for file in self._files():
            self._read_header(file)

    def load(self, names: Iterable[str]) -> dict[str, Tensor]:
        """These tensors, on the CPU; they may be views of the mapped files."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.tensors[name].file, []).append(name)
        loaded: dict[str, Tensor] = {}
        for file, wanted in by_file.items():
            with safe_open(file, framework="pt") as opened:
                loaded |= {name: opened.get_tensor(name) for name in wanted}
        return loaded

    def _files(self) -> list[Path]:
        index = self.folder / INDEX
        if not index.is_file():
            if not (self.folder / SINGLE).is_file():
                raise MissingFile(
                    f"there is neither {INDEX} nor {SINGLE}",
                    where=str(self.folder),
                    hint="Only safetensors weights are read; pickled ones may run code.",
                )
            return [self.folder / SINGLE]
        data, _ = load_json(read_text(index, what="index"), source=str(index))
        places = data.get("weight_map") if isinstance(data, dict) else None
        if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
            raise WrongValue("weight_map must map names to files", where=str(index))
        names = sorted(set(places.values()))
        for name in names:
            if Path(name).name != name:
                raise WrongValue(
                    f"weight_map names {name!r}; allowed: files of this folder", where=str(index)
                )
            if not (self.folder / name).is_file():
                raise MissingFile(f"the shard {name} does not exist", where=str(index))
        return [self.folder / name for name in names]

    def _read_header(self, file: Path) -> None:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    part = opened.get_slice(name)
                    kind = part.get_dtype()
                    if kind not in _DTYPES:
                        raise WrongValue(
                            f"{name} has numbers of type {kind}; allowed: {', '.join(_DTYPES)}",
                            where=str(file),
                        )
                    shape = tuple(part.get_shape())
                    self.tensors[name] = StoredTensor(file, shape, _DTYPES[kind])
        except SafetensorError as error:
            raise WrongValue(f"not a safetensors file: {error}", where=str(file)) from None


class ShardWriter:
    """Writes a folder of shards one at a time; ``finish`` adds the index that makes it complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, str] = {}
        self._bytes = 0
        self._shards = 0

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """One more shard; an empty one is not written."""
        if not tensors:
            return
        self._shards += 1
        name = f"model-{self._shards:05d}.safetensors"
        # Each in memory of its own: the format has no views.
        own = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        with replace_on_success(self.folder / name) as temporary:
            save_file(own, temporary, metadata={"format": "pt"})
        self._places |= dict.fromkeys(own, name)
        self._bytes += sum(value.nbytes for value in own.values())

    def finish(self) -> int:
        """Write the index; bytes of all tensors."""
        index = {
            "metadata": {"total_size": self._bytes},
            "weight_map": dict(sorted(self._places.items())),
        }
        write_text(self.folder / INDEX, json.dumps(index, indent=2) + "\n")
        return self._bytes
