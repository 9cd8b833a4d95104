"""Calibration of INT8 factors for a key-value cache: the outputs of chosen Linear layers.

Source: specification chapter 25 part B.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from workbench.engine.errors import MissingFile, WrongState, WrongType, WrongValue
from workbench.engine.events import CancelToken, OnEvent, Progress, emit
from workbench.engine.files.atomic import ensure_writable, write_text
from workbench.engine.files.kv_config import LINEAR, METHOD, default_kv_config, read_kv_config
from workbench.engine.files.kv_text import read_kv_text_config
from workbench.engine.files.record import KVCacheRecord
from workbench.engine.files.record_merge import RecordMerger
from workbench.engine.flows.arguments import check_model, check_path, check_type
from workbench.engine.graph.copying import copy_model
from workbench.engine.modules.kv_cache.observation import Observation
from workbench.engine.modules.kv_cache.wrapper import KVCacheQuant

logger = logging.getLogger("workbench.engine.flows")

_OURS = "workbench.engine.modules."


@dataclass(frozen=True)
class LayerCalibration:
    """How far one layer or name is: ``seen`` of ``needed`` calls."""

    name: str
    seen: int
    needed: int

    @property
    def is_done(self) -> bool:
        return self.seen >= self.needed


def create_quant_cali_config(
    config_file: str,
    model: nn.Module,
    quant_layers: dict[str, list[str]] | None = None,
    config_defination: str | None = None,
) -> None:
    """Write the JSON config of the Linear layers whose output is to be calibrated.

    ``quant_layers``: ``{"kv_cache_quant_layers": [names]}``; with ``config_defination``, a text
    config (``.cfg``), it is ignored. The model is only looked at.

    Errors: ``TypeError`` for a wrong argument type and when both are None; ``ValueError`` for names
    that are unknown, repeated or no Linear layers and for what is wrong in the text config;
    ``RuntimeError`` when nothing is selected, the text config is missing, or the model is already
    calibrating or quantised. Nothing is written then. Chapter 25 section 13.
    """
    function = "create_quant_cali_config"
    check_path(function, "config_file", config_file)
    check_model(function, model)
    check_type(function, "quant_layers", quant_layers, dict, optional=True)
    check_type(function, "config_defination", config_defination, str, optional=True)
    if quant_layers is None and config_defination is None:
        raise WrongType(
            "quant_layers and config_defination are both None",
            where=f"{function}()",
            hint=f"Give one: quant_layers={{{METHOD!r}: [names]}}.",
        )
    _refuse_quantised(function, model)
    modules = _module_kinds(model)
    if config_defination is not None:
        if quant_layers:
            logger.warning("quant_layers is ignored: %s decides", config_defination)
        config = read_kv_text_config(config_defination, modules)
    else:
        config = default_kv_config(_selected(function, quant_layers or {}), modules)
    ensure_writable(config_file)
    write_text(config_file, config.to_json(), warn_if_exists=True)


def create_quant_cali_model(
    config_file: str,
    record_file: str,
    model: nn.Module,
    *,
    inplace: bool = True,
    memory_budget_mb: int = 256,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> nn.Module:
    """Put a watcher around every configured Linear layer and return the model.

    **The model is changed in place**; with ``inplace=False`` a copy that shares its parameters is
    changed instead, in eval mode. Run it on ``batch_num`` batches: its outputs are those of the
    original (without gradients), and each layer's factors are merged into ``record_file``, which is
    emptied now, as soon as that layer has them. ``calibration_status`` tells who is waiting.

    ``memory_budget_mb`` bounds what IFMR keeps of all layers together; beyond it per-tensor layers
    count in bins and per-channel ones keep a sample. Configured modules that are no Linear are
    passed over.

    Errors: ``FileNotFoundError``; ``TypeError``/``ValueError``/``RuntimeError`` as section 14 of
    chapter 25 lists for the config; ``RuntimeError`` for a model that is already calibrating;
    later, from a forward, ``CalibrationError`` for data that has no INT8 factors. Section 16.
    """
    function = "create_quant_cali_model"
    check_path(function, "config_file", config_file)
    check_path(function, "record_file", record_file)
    check_model(function, model)
    check_type(function, "inplace", inplace, bool)
    check_type(function, "memory_budget_mb", memory_budget_mb, int)
    if memory_budget_mb < 1:
        raise WrongValue(
            f"memory_budget_mb is {memory_budget_mb}; allowed: 1 or more", where=f"{function}()"
        )
    if not Path(config_file).is_file():
        raise MissingFile(f"{config_file} does not exist", where=f"{function}() config_file")
    _refuse_quantised(function, model)
    modules = _module_kinds(model)
    config = read_kv_config(config_file, modules)
    names = [name for name in config.layers if modules[name] == LINEAR]
    for name in config.layers:
        if modules[name] != LINEAR:
            logger.warning("%s is a %s and is passed over", name, modules[name])
    _refuse_shared(model, names, source=config_file)
    ensure_writable(record_file)
    if not inplace:
        model = copy_model(model)
    recorder = RecordMerger(record_file)
    recorder.reset()
    done: set[str] = set()

    def found(name: str, record: KVCacheRecord) -> None:
        recorder.add({name: record})
        done.add(name)
        emit(on_event, Progress("calibration", len(done), len(names)))

    budget = (memory_budget_mb << 20) // len(names)
    wrapped: dict[nn.Module | None, nn.Module] = {}
    for name in names:
        observation = Observation(
            name, config.layers[name], config.asymmetric(name), config.batch_num, budget
        )
        layer = model.get_submodule(name)
        wrapped[layer] = KVCacheQuant(layer, observation, found, cancel)
    _replace(model, wrapped)
    return model


def calibration_status(model: nn.Module) -> tuple[LayerCalibration, ...]:
    """Every layer and name that the model calibrates for its cache, with the calls it has seen.

    Knows the layers of ``create_quant_cali_model`` and the names that a ``QuantCalibrationOp`` has
    met so far. Pending are those that are not ``is_done``.
    """
    check_model("calibration_status", model)
    return tuple(
        LayerCalibration(module.layer_name, module.cur_batch, module.batch_num)
        for module in model.modules()
        if isinstance(module, Observation)
    )


def _selected(function: str, quant_layers: Mapping[Any, Any]) -> list[str]:
    unknown = [key for key in quant_layers if key != METHOD]
    if unknown:
        raise WrongValue(
            f"quant_layers has the key {unknown[0]!r}; allowed: {METHOD!r}", where=f"{function}()"
        )
    names = quant_layers.get(METHOD, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise WrongType(
            f"quant_layers[{METHOD!r}] must be a list of str, it is {names!r}",
            where=f"{function}()",
        )
    return names


def _module_kinds(model: nn.Module) -> dict[str, str]:
    """Class name of every module by its path; all paths of a module that has several."""
    return {
        name: LINEAR if isinstance(module, nn.Linear) else type(module).__name__
        for name, module in model.named_modules(remove_duplicate=False)
        if name
    }


def _refuse_quantised(function: str, model: nn.Module) -> None:
    for name, module in model.named_modules():
        if type(module).__module__.startswith(_OURS):
            raise WrongState(
                f"{name or 'the model'} is a {type(module).__name__}: the model is already "
                "calibrating or quantised",
                where=f"{function}()",
                hint="Give the original model.",
            )


def _refuse_shared(model: nn.Module, names: list[str], *, source: str) -> None:
    first: dict[nn.Module, str] = {}
    for name in names:
        other = first.setdefault(model.get_submodule(name), name)
        if other != name:
            raise WrongValue(
                f"{other} and {name} are one module",
                where=source,
                hint="Keep one of the two names: both see the same calls.",
            )


def _replace(model: nn.Module, wrapped: Mapping[nn.Module | None, nn.Module]) -> None:
    """Put the new modules into every place where an old one stands."""
    # Listed first, so that a wrapper's own layer is not wrapped again.
    for owner in list(model.modules()):
        for name, child in owner._modules.items():
            if child in wrapped:
                owner._modules[name] = wrapped[child]
