"""``quantize`` for a model that lies in a folder: one block in memory at a time."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from workbench.engine.errors import WorkbenchError, WrongState, WrongValue
from workbench.engine.events import CancelToken, FileWritten, OnEvent, check, emit
from workbench.engine.files.atomic import ensure_writable, write_text
from workbench.engine.files.config_json import load_json
from workbench.engine.files.reading import read_text
from workbench.engine.files.tensor_folder import INDEX, ShardWriter, TensorFolder
from workbench.engine.flows.arguments import check_path
from workbench.engine.flows.block_calibration import BlockRun, find_blocks, list_batches
from workbench.engine.flows.folder_model import FolderWeights, empty, model_of_folder, state_of
from workbench.engine.flows.module_quantize_config import parse_config
from workbench.engine.flows.module_quantize_rules import Target
from workbench.engine.flows.module_quantize_selection import (
    PlannedLayer,
    Selection,
    replace_everywhere,
    select,
)
from workbench.engine.modules.quantize.base import BaseQuantizeModule
from workbench.engine.modules.quantize.rebuild import describe_deployed, rebuild_deployed
from workbench.engine.modules.quantize.registry import deploy_class

logger = logging.getLogger("workbench.engine.flows")

MANIFEST = "workbench_quantization.json"
_COPIED = (".json", ".txt", ".model", ".jinja")


@dataclass(frozen=True)
class FolderReport:
    """``quantized``: layers in the new folder's small formats; ``left``: others and the reason.

    Sizes are bytes of tensors.
    """

    quantized: tuple[str, ...]
    left: tuple[tuple[str, str], ...]
    bytes_before: int
    bytes_after: int


def quantize_folder(
    folder: str,
    save_folder: str,
    config: dict[str, Any] | None = None,
    batches: Iterable[Any] = (),
    *,
    model: nn.Module | None = None,
    blocks: str | None = None,
    target: Target = "portable",
    any_dtype: bool = False,
    memory_budget_mb: int = 1024,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> FolderReport:
    """Quantise the safetensors weights of ``folder`` into ``save_folder``, a block at a time.

    In memory are what lies outside of the blocks (embeddings, head), one block with its statistics,
    and the answers of one block to all batches (``memory_budget_mb``, the rest in temporary files).
    ``config``, ``target``, ``any_dtype`` as for ``quantize``; ``batches``, ``blocks`` as for
    ``calibrate_by_block``; none are needed by algorithms that look at weights only.

    ``model``: a module whose parameters have the names of the stored tensors; build it under
    ``empty_weights()``. It is used up: its blocks are empty afterwards. None: transformers builds
    it from ``config.json`` (extra ``hf``); code in the folder is never run.
    ``load_quantized_folder`` reads the result.

    Errors: ``FileNotFoundError``/``ValueError`` for a folder that cannot be read or does not fit
    the model, listing all tensors concerned; ``ValueError`` for the configuration and for a
    ``save_folder`` that is not empty; ``RuntimeError`` when nothing would be quantised or a layer
    is not calibrated. ``save_folder`` appears complete or not at all.
    """
    function = "quantize_folder"
    check_path(function, "folder", folder)
    check_path(function, "save_folder", save_folder)
    place = Path(save_folder)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise WrongValue(
            f"save_folder {save_folder!r} exists and is not empty",
            where=f"{function}()",
            hint="Name a new folder.",
        )
    ensure_writable(place / INDEX)
    tensors = TensorFolder(folder)
    net = model_of_folder(Path(folder)) if model is None else model
    weights = FolderWeights(net, tensors)
    selection = select(net, parse_config(config), target=target, any_dtype=any_dtype)
    _check_selection(selection)
    path, found = find_blocks(net, blocks)
    named = [(f"{path}.{name}", block) for name, block in found]
    place.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}-"))
    try:
        job = _Job(net, weights, selection, ShardWriter(staging))
        job.run(
            named,
            list_batches("quantize_folder", batches),
            memory_budget_mb=memory_budget_mb,
            on_event=on_event,
            cancel=cancel,
        )
        size = job.finish(Path(folder), staging)
        if place.exists():
            place.rmdir()
        staging.rename(place)
        place.chmod(0o750)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    emit(on_event, FileWritten(str(place), size))
    before = sum(t.dtype.itemsize * _count(t.shape) for t in tensors.tensors.values())
    return FolderReport(
        tuple(layer.name for layer in selection.planned),
        tuple((layer.name, layer.reason) for layer in selection.left),
        before,
        size,
    )


def load_quantized_folder(folder: str, *, model: nn.Module | None = None) -> nn.Module:
    """The converted model that ``quantize_folder`` wrote, in eval mode.

    ``model`` as there: the float architecture, whose layers are replaced in place. Errors:
    ``FileNotFoundError``; ``ValueError`` listing what does not fit.
    """
    check_path("load_quantized_folder", "folder", folder)
    manifest = Path(folder) / MANIFEST
    data, _ = load_json(read_text(manifest, what="manifest"), source=str(manifest))
    layers = data.get("layers") if isinstance(data, dict) else None
    if not isinstance(layers, dict):
        raise WrongValue("layers must be an object", where=str(manifest))
    tensors = TensorFolder(folder)
    net = model_of_folder(Path(folder)) if model is None else model
    for name, described in layers.items():
        where = f"{manifest}, layer {name}"
        try:
            old = net.get_submodule(name)
            stored = {key: tensors.tensors[f"{name}.{key}"] for key in described["buffers"]}
            shapes = {
                key: torch.empty(t.shape, dtype=t.dtype, device="meta") for key, t in stored.items()
            }
            new = rebuild_deployed(described, shapes, where=where)
        except WorkbenchError:
            raise
        except (AttributeError, KeyError, TypeError) as error:
            raise WrongValue(f"the entry does not fit: {error}", where=where) from None
        replace_everywhere(net, old, new)
    FolderWeights(net, tensors).fill(net)
    return net.eval()


class _Job:
    """One pass over the blocks: load, calibrate, convert, write, let go."""

    def __init__(
        self, net: nn.Module, weights: FolderWeights, selection: Selection, writer: ShardWriter
    ) -> None:
        self._net, self._weights, self._writer = net, weights, writer
        self._planned = {layer.name: layer for layer in selection.planned}
        self._layers: dict[str, Mapping[str, Any]] = {}

    def run(
        self,
        blocks: list[tuple[str, nn.Module]],
        batches: list[tuple[tuple[Any, ...], dict[str, Any]]],
        *,
        memory_budget_mb: int,
        on_event: OnEvent | None,
        cancel: CancelToken | None,
    ) -> None:
        inside = tuple(f"{name}." for name, _ in blocks)
        outside = [layer for name, layer in self._planned.items() if not name.startswith(inside)]
        self._weights.fill(self._net, without=[block for _, block in blocks])
        self._build(outside)
        if batches:
            BlockRun(self._net, blocks, batches).run(
                prepare=self._prepare,
                calibrated=lambda name, _block: self._convert(self._below(name)),
                done=self._done,
                memory_budget_mb=memory_budget_mb,
                on_event=on_event,
                cancel=cancel,
            )
        else:
            for name, block in blocks:
                check(cancel)
                self._prepare(name, block)
                self._convert(self._below(name))
                self._done(name, block)
        self._convert(outside)
        self._writer.write(state_of(self._net, "", without=[name for name, _ in blocks]))

    def finish(self, folder: Path, staging: Path) -> int:
        """Write the index, the manifest and copies of the small files; bytes of all tensors."""
        size = self._writer.finish()
        manifest = {"version": 1, "layers": self._layers}
        write_text(staging / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        for file in sorted(folder.iterdir()):
            if file.is_file() and file.suffix in _COPIED and not (staging / file.name).exists():
                shutil.copyfile(file, staging / file.name)
        return size

    def _below(self, name: str) -> list[PlannedLayer]:
        return [layer for key, layer in self._planned.items() if key.startswith(f"{name}.")]

    def _prepare(self, name: str, block: nn.Module) -> None:
        self._weights.fill(block)
        self._build(self._below(name))

    def _build(self, layers: list[PlannedLayer]) -> None:
        for layer in layers:
            replace_everywhere(self._net, layer.module, layer.build())

    def _convert(self, layers: list[PlannedLayer]) -> None:
        for layer in layers:
            module = self._net.get_submodule(layer.name)
            if isinstance(module, BaseQuantizeModule):
                if missing := module.calls_missing():
                    raise WrongState(
                        f"layer {layer.name} has seen {module.cur_batch} of "
                        f"{module.cur_batch + missing} calls",
                        where="quantize_folder() batches",
                        hint="Give as many batches as batch_num.",
                    )
                deploy = cast(Any, deploy_class(module))
                replace_everywhere(self._net, module, deploy(module))
                # The plan still holds the layer: without this every float weight would stay.
                empty(layer.module)
            described = describe_deployed(self._net.get_submodule(layer.name))
            if described is None:
                raise WrongState(
                    f"layer {layer.name}: a {layer.algorithm} layer cannot be stored in a folder"
                )
            self._layers[layer.name] = described

    def _done(self, name: str, block: nn.Module) -> None:
        self._writer.write(state_of(self._net, name))
        empty(block)


def _check_selection(selection: Selection) -> None:
    if not selection.planned:
        reasons = "; ".join(f"{layer.name}: {layer.reason}" for layer in selection.left[:5])
        raise WrongState(
            f"nothing would be quantised: {reasons or 'the model has no Linear layer'}",
            where="quantize_folder()",
        )
    for layer in selection.planned:
        if not layer.op.built_in or layer.config.kvcache:
            raise WrongState(
                f"layer {layer.name}: what {layer.algorithm} makes of it cannot be stored",
                where="quantize_folder()",
                hint="Allowed are the built-in algorithms for weights and inputs.",
            )


def _count(shape: tuple[int, ...]) -> int:
    result = 1
    for length in shape:
        result *= length
    return result
