"""A project is a folder: what is open, its configuration, results and exports."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from workbench.engine.errors import MissingFile, WorkbenchError, WrongType, WrongValue
from workbench.engine.graph.layers import LayerInfo
from workbench.studio.errors import NotWritable
from workbench.studio.image_settings import ImageSettings, check_image_settings
from workbench.studio.source_spec import SOURCE_KINDS, SourceSpec
from workbench.studio.store import Store

TOML_NAME = "project.toml"
STORE_NAME = "project.sqlite"
SHRINK_STEPS = ("prune", "decompose")
DATA_KINDS = ("zoo", "stored", "npz", "folder", "python", "none")
TRAIN_KINDS = ("zoo", "live", "npz", "folder", "python", "none")
MAX_NAME = 200
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

MODEL_FILES: Mapping[str, tuple[str, str]] = {
    "pt2": ("workbench.engine.graph.pt2_model", "load_exported_program"),
    "onnx": ("workbench.engine.graph.onnx_model", "load_onnx_model"),
    "hf": ("workbench.engine.flows.folder_network", "load_folder_model"),
}
"""Kinds of source that are files: the function that reads one without running anything in it.

``pt2`` and ``onnx`` are suffixes, ``hf`` is a folder with ``config.json`` and safetensors.

Named, not imported: a server that only shows tables never loads torch.
"""

_UNSAFE = re.compile(r"[^\w.\- ]+", re.UNICODE)


@dataclass(frozen=True)
class DataSpec:
    """Where the data comes from; paths are absolute or relative to the project folder.

    ``images`` counts for a folder of pictures.
    """

    kind: str = "none"
    name: str = ""
    batch_size: int = 64
    calibration_batches: int = 2
    images: ImageSettings = field(default_factory=ImageSettings)


@dataclass(frozen=True)
class TrainSpec:
    """Where training data comes from; kind none: an example's own, else the calibration data.

    A live loader is known by its name only: it cannot be kept. ``images`` as in ``DataSpec``.
    """

    kind: str = "none"
    name: str = ""
    images: ImageSettings = field(default_factory=ImageSettings)


@dataclass(frozen=True)
class ProjectSettings:
    """Everything in ``project.toml``. ``metric`` is empty for the default one.

    ``threads`` is the thread count that jobs and ``log.py`` set, so that results repeat.
    """

    name: str
    source: SourceSpec = field(default_factory=SourceSpec)
    data: DataSpec = DataSpec()
    metric: str = ""
    threads: int = 1
    seed: int = 0
    train: TrainSpec = TrainSpec()


class Project:
    """An open project folder; ``store`` holds what windows share."""

    def __init__(self, folder: Path, settings: ProjectSettings, store: Store) -> None:
        self.folder = folder
        self.settings = settings
        self.store = store

    @classmethod
    def create(
        cls,
        folder: str | Path,
        *,
        settings: ProjectSettings | None = None,
        layers: Sequence[LayerInfo] = (),
        weight_ranges: Mapping[str, float] | None = None,
        float_bytes: int = 0,
    ) -> Project:
        """A new project in ``folder``, which may exist but must not hold a project yet.

        ``layers`` can be written now or by the project's first job. Errors: ``NotWritable``,
        ``WrongValue`` when there is a project already.
        """
        path = Path(folder).expanduser().absolute()
        # Unlike Path.exists, False for what lies in a folder that may not be entered.
        if os.path.exists(path / TOML_NAME):
            raise WrongValue(
                "there is a project in this folder already",
                where=str(path),
                hint="Open it with Project.open, or choose another folder.",
            )
        settings = settings or ProjectSettings(name=path.name)
        check_settings(settings, where=str(path / TOML_NAME))
        fresh = not os.path.exists(path)
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o750)
        except OSError as error:
            raise not_writable(path, error) from error
        if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
            raise not_writable(path, None)
        try:
            store = Store(path / STORE_NAME)
            if layers:
                store.write_layers(
                    layers, settings.source, weight_ranges=weight_ranges, float_bytes=float_bytes
                )
            write_whole(path / TOML_NAME, to_toml(settings))
        except OSError as error:
            if fresh:
                shutil.rmtree(path, ignore_errors=True)
            if isinstance(error, WorkbenchError):
                raise
            raise not_writable(path, error) from error
        return cls(path, settings, store)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Project:
        """The project in ``folder``; for reading only when the folder cannot be written.

        Errors: ``MissingFile`` when there is none, ``WrongType`` or ``WrongValue`` when
        ``project.toml`` or the database holds what it must not.
        """
        path = Path(folder).expanduser().absolute()
        if not (path / TOML_NAME).is_file():
            raise MissingFile(
                f"there is no {TOML_NAME} in this folder",
                where=str(path),
                hint="Choose a folder that the app, a notebook or a script has written.",
            )
        settings = read_settings(path / TOML_NAME)
        writable = os.access(path, os.W_OK | os.X_OK)
        if not writable and not (path / STORE_NAME).exists():
            raise MissingFile(f"{STORE_NAME} is missing", where=str(path))
        store = Store(path / STORE_NAME, read_only=not writable)
        return cls(path, settings, store)

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def source(self) -> SourceSpec:
        return self.settings.source

    @property
    def read_only(self) -> bool:
        return self.store.read_only

    @property
    def config_path(self) -> Path:
        return self.folder / "ptq.json"

    @property
    def record_path(self) -> Path:
        return self.folder / "ptq.record.txt"

    @property
    def prune_path(self) -> Path:
        """The pruning configuration; there is none while no layer is to lose channels."""
        return self.folder / "prune.cfg"

    def config_of(self, method: str) -> Path:
        """The configuration of a flow: ``ptq.json``, ``qat.json``, ``compressed.cfg``."""
        ending = "cfg" if method in ("sparse", "compressed") else "json"
        return self.folder / f"{method}.{ending}"

    def record_of(self, method: str) -> Path:
        return self.folder / f"{method}.record.txt"

    def weights_of(self, method: str) -> Path:
        """The weights that a training ended with, as a torch state dict."""
        return self.folder / f"{method}.pth"

    def checkpoints_of(self, method: str) -> Path:
        return self.folder / "checkpoints" / method

    @property
    def log_path(self) -> Path:
        return self.folder / "log.py"

    @property
    def exports(self) -> Path:
        return self.folder / "exports"

    @property
    def state_path(self) -> Path:
        """The weights of a live model."""
        return self.folder / "model.safetensors"

    @property
    def data_path(self) -> Path:
        """The stored batches of a live model."""
        return self.folder / "data.npz"

    def update_settings(self, **changes: Any) -> None:
        """Change ``project.toml``, whole or not at all."""
        settings = replace(self.settings, **changes)
        check_settings(settings, where=str(self.folder / TOML_NAME))
        write_whole(self.folder / TOML_NAME, to_toml(settings))
        self.settings = settings

    def read_again(self) -> ProjectSettings:
        """The settings as ``project.toml`` has them now; as they were where it is gone."""
        path = self.folder / TOML_NAME
        if path.is_file():
            self.settings = read_settings(path)
        return self.settings

    def close(self) -> None:
        self.store.close()


def is_project(folder: str | os.PathLike[str]) -> bool:
    return (Path(folder).expanduser() / TOML_NAME).is_file()


def safe_name(text: str, *, default: str = "project") -> str:
    """``text`` as one file name: no separators, no leading dots, at most 200 bytes."""
    name = _UNSAFE.sub("_", text).strip(" .")
    while len(name.encode()) > MAX_NAME:
        name = name[:-1]
    return name or default


def not_writable(path: Path, error: OSError | None) -> NotWritable:
    if error is not None and error.errno in DISK_FULL:
        return NotWritable(
            f"the disk is full ({error.strerror})",
            where=str(path),
            hint="Free some space and try again; nothing half-written is left.",
        )
    reason = f" ({error.strerror or error})" if error else ""
    return NotWritable(
        f"the folder cannot be written{reason}",
        where=str(path),
        hint="Choose a folder you can write to, or change its permissions.",
    )


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all, with its folder's reasons in the error."""
    from workbench.engine.files.atomic import write_text

    try:
        write_text(path, text)
    except OSError as error:
        raise not_writable(path.parent, error) from error


# -- project.toml ---------------------------------------------------------------------------------


def read_settings(path: Path) -> ProjectSettings:
    """``project.toml``, checked field by field."""
    where = str(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WrongValue(
            f"the file is not valid TOML ({error})", where=where, hint="Correct it by hand."
        ) from error
    version = data.pop("version", 1)
    if version != 1:
        raise WrongValue(
            f"version is {version!r}; this version of the workbench reads 1", where=where
        )
    source = _table(data, "source", where)
    dataset = _table(data, "data", where)
    train = _table(data, "train", where)
    metric = _table(data, "metric", where)
    run = _table(data, "run", where)
    name = data.pop("name", path.parent.name)
    _nothing_left(data, "", where)
    settings = ProjectSettings(
        name=name,
        source=SourceSpec(
            kind=source.pop("kind", "none"),
            name=source.pop("name", ""),
            arguments=source.pop("arguments", {}),
            weights=source.pop("weights", ""),
        ),
        data=DataSpec(
            kind=dataset.pop("kind", "none"),
            name=dataset.pop("name", ""),
            batch_size=dataset.pop("batch_size", 64),
            calibration_batches=dataset.pop("calibration_batches", 2),
            images=_images(dataset, where, "data"),
        ),
        metric=metric.pop("name", ""),
        threads=run.pop("threads", 1),
        seed=run.pop("seed", 0),
        train=TrainSpec(
            kind=train.pop("kind", "none"),
            name=train.pop("name", ""),
            images=_images(train, where, "train"),
        ),
    )
    tables = {"source": source, "data": dataset, "train": train, "metric": metric, "run": run}
    for prefix, table in tables.items():
        _nothing_left(table, prefix, where)
    check_settings(settings, where=where)
    return settings


def check_settings(settings: ProjectSettings, *, where: str) -> None:
    """Raise ``WrongType`` or ``WrongValue`` naming the first field that is not allowed."""
    source, data = settings.source, settings.data
    for field_name, value in (
        ("name", settings.name),
        ("source.kind", source.kind),
        ("source.name", source.name),
        ("source.weights", source.weights),
        ("data.kind", data.kind),
        ("data.name", data.name),
        ("train.kind", settings.train.kind),
        ("train.name", settings.train.name),
        ("metric.name", settings.metric),
    ):
        if not isinstance(value, str):
            raise WrongType(f"{field_name} is {value!r}; it must be text", where=where)
        if len(value) > 4096 or any(ord(c) < 32 or ord(c) == 127 for c in value):
            raise WrongValue(f"{field_name} is too long or holds control characters", where=where)
    for field_name, number, low, high in (
        ("data.batch_size", data.batch_size, 1, 1_000_000),
        ("data.calibration_batches", data.calibration_batches, 1, 1_000_000),
        ("run.threads", settings.threads, 1, 1024),
        ("run.seed", settings.seed, 0, 2**63 - 1),
    ):
        if not isinstance(number, int) or isinstance(number, bool):
            raise WrongType(f"{field_name} is {number!r}; it must be an integer", where=where)
        if not low <= number <= high:
            raise WrongValue(f"{field_name} is {number}; allowed: {low} to {high}", where=where)
    if source.kind not in SOURCE_KINDS:
        raise WrongValue(
            f"source.kind is {source.kind!r}; allowed: {', '.join(SOURCE_KINDS)}", where=where
        )
    if source.kind == "shrunk":
        _check_shrunk(source, where)
    check_image_settings(data.images, where=where)
    check_image_settings(settings.train.images, where=where, table="train")
    if data.kind not in DATA_KINDS:
        raise WrongValue(
            f"data.kind is {data.kind!r}; allowed: {', '.join(DATA_KINDS)}", where=where
        )
    if settings.train.kind not in TRAIN_KINDS:
        raise WrongValue(
            f"train.kind is {settings.train.kind!r}; allowed: {', '.join(TRAIN_KINDS)}",
            where=where,
        )
    if not isinstance(source.arguments, Mapping):
        raise WrongType("source.arguments must be a table", where=where)
    try:
        json.dumps(dict(source.arguments))
    except (TypeError, ValueError) as error:
        raise WrongType(f"source.arguments: {error}", where=where) from error


def _check_shrunk(source: SourceSpec, where: str) -> None:
    base, steps = source.arguments.get("base"), source.arguments.get("steps")
    fields = {"kind": str, "name": str, "arguments": Mapping, "weights": str}
    if not isinstance(base, Mapping) or any(
        key not in fields or not isinstance(value, fields[key]) for key, value in base.items()
    ):
        raise WrongType(
            f"source.arguments.base is {base!r}; it must be a table of {', '.join(fields)}",
            where=where,
        )
    kinds = [kind for kind in SOURCE_KINDS if kind not in ("shrunk", "none")]
    if base.get("kind") not in kinds:
        raise WrongValue(
            f"source.arguments.base.kind is {base.get('kind')!r}; allowed: {', '.join(kinds)}",
            where=where,
        )
    if not isinstance(steps, list | tuple) or any(step not in SHRINK_STEPS for step in steps):
        raise WrongValue(
            f"source.arguments.steps is {steps!r}; allowed: a list of {', '.join(SHRINK_STEPS)}",
            where=where,
        )


def to_toml(settings: ProjectSettings) -> str:
    source, data = settings.source, settings.data
    lines = ["version = 1", f"name = {_quote(settings.name)}", "", "[source]"]
    lines += [f"kind = {_quote(source.kind)}", f"name = {_quote(source.name)}"]
    if source.weights:
        lines.append(f"weights = {_quote(source.weights)}")
    if source.arguments:
        pairs = ", ".join(
            f"{_quote(str(key))} = {_value(value)}" for key, value in source.arguments.items()
        )
        lines.append(f"arguments = {{ {pairs} }}")
    lines += ["", "[data]", f"kind = {_quote(data.kind)}", f"name = {_quote(data.name)}"]
    lines += [f"batch_size = {data.batch_size}"]
    lines += [f"calibration_batches = {data.calibration_batches}"]
    if data.kind == "folder":
        lines += [f"{key} = {_value(value)}" for key, value in data.images.given().items()]
    if settings.train.kind != "none":
        lines += ["", "[train]", f"kind = {_quote(settings.train.kind)}"]
        lines += [f"name = {_quote(settings.train.name)}"]
    if settings.train.kind == "folder":
        given = settings.train.images.given()
        lines += [f"{key} = {_value(value)}" for key, value in given.items()]
    lines += ["", "[metric]", f"name = {_quote(settings.metric)}"]
    lines += ["", "[run]", f"threads = {settings.threads}", f"seed = {settings.seed}", ""]
    return "\n".join(lines)


def _images(table: dict[str, Any], where: str, name: str) -> ImageSettings:
    lists: dict[str, tuple[float, ...] | None] = {}
    for key in ("mean", "std"):
        value = table.pop(key, None)
        if value is not None and not isinstance(value, list):
            raise WrongType(f"{name}.{key} is {value!r}; it must be a list of numbers", where=where)
        lists[key] = None if value is None else tuple(value)
    return ImageSettings(resize=table.pop("resize", 0), crop=table.pop("crop", 0), **lists)


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _quote(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_quote(str(k))} = {_value(v)}" for k, v in value.items()) + " }"
    raise WrongType(f"{value!r} cannot be kept in {TOML_NAME}", where="source.arguments")


def _table(data: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    table = data.pop(key, {})
    if not isinstance(table, dict):
        raise WrongType(f"{key} must be a table, it is {table!r}", where=where)
    return dict(table)


def _nothing_left(table: Mapping[str, Any], prefix: str, where: str) -> None:
    if table:
        name = f"{prefix}.{next(iter(table))}".lstrip(".")
        raise WrongValue(
            f"there is no field {name!r}", where=where, hint="Remove it or correct its name."
        )
