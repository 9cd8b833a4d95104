"""Channel pruning and 2:4 sparsity: create, restore and save the model to retrain.

Source: specification chapter 40 sections 1 to 3.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from workbench.engine.events import CancelToken, FileWritten, Notice, OnEvent, check, emit
from workbench.engine.export.float_onnx import to_onnx
from workbench.engine.export.save import OutputPaths, output_paths
from workbench.engine.export.staging import publish, serialize
from workbench.engine.files.atomic import ensure_writable, make_parents
from workbench.engine.files.prune_config import (
    PruneConfig,
    configures_pruning,
    modes_named_twice,
    resolve_prune_config,
)
from workbench.engine.files.reading import read_text
from workbench.engine.files.record import PruneRecord, Record, read_record, write_record
from workbench.engine.files.retrain_text import parse_retrain_text_config
from workbench.engine.files.sidecar import Sidecar, read_sidecar, sidecar_path, write_sidecar
from workbench.engine.flows.arguments import check_model, check_onnx_names, check_path, check_type
from workbench.engine.flows.channel_checks import (
    NewSize,
    RemovalCheck,
    set_sizes,
    size_candidates,
)
from workbench.engine.flows.channel_surgery import Removal, apply_cuts, cuts_of
from workbench.engine.flows.checkpoints import load_state, read_state
from workbench.engine.flows.prune_layers import prune_layers
from workbench.engine.flows.prune_plan import Choice, PruneReport, group_report, plan_removal
from workbench.engine.flows.prune_record import (
    as_recorded,
    check_known,
    group_record,
    removals_of,
)
from workbench.engine.flows.ptq import resolve_compat
from workbench.engine.flows.qat import wrapped_like
from workbench.engine.flows.qat_state import is_main_process, unwrapped
from workbench.engine.flows.selective import fold_selective_layers, wrap_selective_layers
from workbench.engine.graph.capture import Captured, capture, copy_model
from workbench.engine.graph.channel_groups import channel_groups
from workbench.engine.graph.channel_map import channel_map
from workbench.engine.graph.copying import copy_for_training

logger = logging.getLogger("workbench.engine.flows")

REPORT = "workbench_prune"
"""Attribute of a created model that holds its ``PruneReport``."""

THROUGH_LAYER_NORM = "through_layer_norm"
"""Option of the record's sidecar."""

CHOSEN = "prune_channels"
"""Option of a text config's sidecar: producer -> channels that a search chose to remove."""


@dataclass(frozen=True, eq=False)
class Pruned:
    """A smaller model, its record entries, and what was decided for every group."""

    model: nn.Module
    records: tuple[PruneRecord, ...]
    report: PruneReport


def create_prune_retrain_model(
    model: nn.Module,
    input_data: Any,
    config_defination: str,
    record_file: str,
    *,
    through_layer_norm: bool = False,
    compat: bool | None = None,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> nn.Module:
    """A copy of ``model`` without the channels that the config takes, and with its 2:4 masks.

    ``input_data``: a tuple of example inputs (or one tensor); the smaller model is run on it and
    must compute what the model does with the removed channels silenced. Groups that do not are left
    whole and named in a warning. Train and eval mode are kept. What was decided for each group, and
    why layers lose nothing, is in ``model.workbench_prune``. Build the optimiser afterwards.

    ``through_layer_norm``: channels that a LayerNorm or RMSNorm normalises over (the width of a
    transformer) may go too, although the statistics of the others change with them. ``compat``:
    the reference's types of layers, its scores of coupled ones, and train mode; None: as the search
    that wrote the config, else False.

    Errors: ``TypeError`` for a wrong argument type; ``FileNotFoundError`` for a missing config,
    ``ParseError`` for one that is none, one ``ValueError`` with everything that is wrong in it;
    ``RuntimeError`` for a model that cannot be captured, copied or run, or holds compression
    modules already. The record is written when everything else has succeeded.

    Source: specification chapter 40 section 1.1.
    """
    function = "create_prune_retrain_model"
    check_model(function, model)
    check_path(function, "config_defination", config_defination)
    check_path(function, "record_file", record_file)
    check_type(function, "through_layer_norm", through_layer_norm, bool)
    check_type(function, "compat", compat, bool, optional=True)
    message = read_prune_text(config_defination, on_event)
    if compat is None or sidecar_path(config_defination).exists():
        compat = resolve_compat(config_defination, compat)
    ensure_writable(record_file)
    inner = unwrapped(function, model)
    captured = capture(inner, input_data, dynamic=False, on_event=on_event)
    check(cancel)
    config = resolve_prune_config(
        message, prune_layers(captured, compat=compat), source=config_defination, compat=compat
    )
    pruned = prune_channels(
        inner,
        captured,
        config,
        through_layer_norm=through_layer_norm,
        choice=read_choice(config_defination),
        compat=compat,
        on_event=on_event,
        cancel=cancel,
    )
    masks = wrap_selective_layers(pruned.model, config.selective())
    if configures_pruning(message) and not config.selective():
        _warn_if_nothing(pruned.report, on_event)
    if not configures_pruning(message):
        _warn(
            f"{config_defination} has settings of quantisation only: nothing is pruned. "
            "create_compressed_retrain_model quantises as well.",
            on_event,
        )
    setattr(pruned.model, REPORT, pruned.report)
    if compat:
        pruned.model.train()
    if is_main_process():
        record = Record(prune=(*pruned.records, *masks))
        write_record(record_file, record, warn_if_exists=True)
        options = {THROUGH_LAYER_NORM: True} if through_layer_norm else {}
        write_sidecar(record_file, Sidecar(compat=compat, options=options))
    return wrapped_like(model, pruned.model)


def restore_prune_retrain_model(
    model: nn.Module,
    input_data: Any,
    record_file: str,
    config_defination: str,
    pth_file: str,
    state_dict_name: str | None = None,
    *,
    compat: bool | None = None,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> nn.Module:
    """The model that ``record_file`` describes, made of the dense ``model``, with a checkpoint.

    The record decides which channels go; of the config only its 2:4 layers count. ``pth_file``:
    what ``torch.save(model.state_dict(), ...)`` wrote, or a dict that holds the state dict under
    ``state_dict_name``; read with weights-only loading, names may begin with ``module.``.

    Errors: those of ``create_prune_retrain_model``; ``FileNotFoundError`` for a missing record or
    checkpoint; ``RuntimeError`` for a record that is none or another model's, and for a checkpoint
    that does not fit; ``KeyError`` for a ``state_dict_name`` that the checkpoint lacks.

    Source: specification chapter 40 section 1.2.
    """
    function = "restore_prune_retrain_model"
    check_model(function, model)
    for name, path in (
        ("record_file", record_file),
        ("config_defination", config_defination),
        ("pth_file", pth_file),
    ):
        check_path(function, name, path)
    check_type(function, "state_dict_name", state_dict_name, str, optional=True)
    message = read_prune_text(config_defination, on_event)
    record = read_record(record_file)
    compat = resolve_compat(record_file, compat)
    state = read_state(pth_file, state_dict_name)
    inner = unwrapped(function, model)
    captured = capture(inner, input_data, dynamic=False, on_event=on_event)
    check(cancel)
    config = resolve_prune_config(
        message, prune_layers(captured, compat=compat), source=config_defination, compat=compat
    )
    created = rebuild_pruned(inner, captured, record, record_file, cancel=cancel)
    recorded = {e.selective_prune.name: e for e in record.prune if e.selective_prune}
    wrap_selective_layers(created, config.selective(), recorded, source=record_file)
    load_state(created, state, pth_file, created=f"the record ({record_file})")
    if compat:
        created.train()
    return wrapped_like(model, created)


def save_prune_retrain_model(
    model: nn.Module,
    save_path: str,
    input_data: Any,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    dynamic_axes: Mapping[str, Any] | None = None,
    *,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> None:
    """Write the sparse model as two equal ONNX files, 2:4 masks folded into the weights.

    ``save_path``: folder and prefix of the files ``<prefix>_deploy_model.onnx`` and
    ``<prefix>_fake_quant_model.onnx``; both appear or, on any error, none. The model, in whatever
    mode, stays as it is.

    Errors: ``TypeError`` for a wrong argument type; ``ValueError`` for a prefix over 241
    characters; ``RuntimeError`` for malformed names or axes and a model that cannot be captured or
    copied.

    Source: specification chapter 40 section 1.3.
    """
    function = "save_prune_retrain_model"
    check_model(function, model)
    check_type(function, "save_path", save_path, str)
    check_onnx_names(function, input_names, output_names, dynamic_axes)
    paths = output_paths(save_path)
    plain = copy_model(unwrapped(function, model))
    fold_selective_layers(plain)
    captured = capture(plain, input_data, on_event=on_event)
    check(cancel)
    exported = to_onnx(
        captured,
        None,
        input_names=input_names,
        output_names=output_names,
        dynamic_axes=dynamic_axes,
    )
    check(cancel)
    if is_main_process():
        write_equal_files(exported, paths, on_event)


def write_equal_files(exported: Any, paths: OutputPaths, on_event: OnEvent | None) -> None:
    """One ONNX model under the names of the deploy and the fake-quant file."""
    names = [paths.fake_quant.name, paths.deploy.name]
    make_parents(paths.deploy)
    staging = Path(tempfile.mkdtemp(dir=paths.deploy.parent, prefix=".export-"))
    try:
        serialize(exported, staging, names[0], ".external")
        shutil.copyfile(staging / names[0], staging / names[1])
        publish(staging, paths.deploy.parent, names)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    for path in (paths.fake_quant, paths.deploy):
        emit(on_event, FileWritten(str(path), path.stat().st_size))


def read_prune_text(path: str, on_event: OnEvent | None = None) -> Any:
    """The ``AMCTRetrainConfig`` of a file; a warning where a block names both modes."""
    text = read_text(path, what="text configuration")
    message = parse_retrain_text_config(text, source=path)
    if modes_named_twice(text):
        warning = (
            f"{path}: a prune_config names both filter_pruner and n_out_of_m_pruner; the last one "
            "counts. Keep one of them."
        )
        logger.warning(warning)
        emit(on_event, Notice(warning))
    return message


def read_choice(config_defination: str) -> Choice:
    """The channels that a search chose, from the config's sidecar; empty when there are none."""
    chosen = read_sidecar(config_defination).options.get(CHOSEN, {})
    if not isinstance(chosen, Mapping):
        return {}
    return {
        name: tuple(i for i in channels if isinstance(i, int))
        for name, channels in chosen.items()
        if isinstance(channels, list)
    }


def prune_channels(
    model: nn.Module,
    captured: Captured,
    config: PruneConfig,
    *,
    through_layer_norm: bool = False,
    choice: Choice | None = None,
    compat: bool = False,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> Pruned:
    """A trainable copy of ``model`` without the channels that ``config`` takes.

    ``captured``: the capture of the same model. ``choice`` names channels that a search chose.
    """
    settings = config.channel()
    planned, reasons = _planned(captured, config, through_layer_norm, compat, choice)
    accepted = RemovalCheck(captured, cancel=cancel).accept(planned)
    refused = {id(removal.group): problem for removal, problem in accepted.refused}
    for removal, problem in accepted.refused:
        names = ", ".join(member.module for member in removal.group.producers)
        warning = f"{names} keep their channels: {problem}. List them in regular_prune_skip_layers."
        logger.warning(warning)
        emit(on_event, Notice(warning))
    kept = [Removal(r.group, ()) if id(r.group) in refused else r for r in planned]
    created = copy_for_training(model)
    apply_cuts(created, cuts_of(kept))
    set_sizes(created, accepted.sizes)
    flat = {name: len(info.input_shape) == 2 for name, info in captured.layers.items()}
    written = [r for r in planned if id(r.group) not in refused]
    reports = (group_report(r, settings, refused=refused.get(id(r.group), "")) for r in planned)
    return Pruned(
        model=created,
        records=tuple(group_record(r, captured.module, flat=flat) for r in written),
        report=PruneReport(tuple(reports), reasons),
    )


def preview_pruning(
    captured: Captured,
    config: PruneConfig,
    *,
    through_layer_norm: bool = False,
    choice: Choice | None = None,
    compat: bool = False,
) -> PruneReport:
    """What ``prune_channels`` would do, without making or running the smaller model."""
    planned, reasons = _planned(captured, config, through_layer_norm, compat, choice)
    settings = config.channel()
    return PruneReport(tuple(group_report(r, settings) for r in planned), reasons)


def _planned(
    captured: Captured,
    config: PruneConfig,
    through_layer_norm: bool,
    compat: bool,
    choice: Choice | None,
) -> tuple[list[Removal], Mapping[str, str]]:
    """The removal of every group, and the reasons of the producers in none."""
    settings = config.channel()
    channels = channel_map(captured, through_layer_norm=through_layer_norm)
    found = channel_groups(channels, settings.keys())
    planned = [
        plan_removal(captured.module, group, settings, compat=compat, choice=choice)
        for group in found.groups
    ]
    return planned, found.reasons


def rebuild_pruned(
    model: nn.Module,
    captured: Captured,
    record: Record,
    record_file: str,
    *,
    cancel: CancelToken | None = None,
) -> nn.Module:
    """A trainable copy of the dense ``model`` without the channels that a record removes."""
    check_known(record, captured.module, source=record_file)
    through = read_sidecar(record_file).options.get(THROUGH_LAYER_NORM, False) is True
    found = channel_groups(channel_map(captured, through_layer_norm=through))
    removals = removals_of(record, found.groups, source=record_file)
    sizes: tuple[NewSize, ...] = ()
    if size_candidates(captured.module, removals):
        sizes = RemovalCheck(captured, cancel=cancel).accept(removals).sizes
    created = copy_for_training(model)
    apply_cuts(created, as_recorded(cuts_of(removals), removals, record, source=record_file))
    set_sizes(created, sizes)
    if not record.prune:
        logger.warning("%s removes nothing: the model stays dense", record_file)
    return created


def _warn_if_nothing(report: PruneReport, on_event: OnEvent | None) -> None:
    if any(gone for group in report.groups for gone in group.removed.values()):
        return
    lines = "".join(f"\n  {name}: {reason}" for name, reason in report.blocked().items())
    _warn(f"No channel is removed:{lines}", on_event)


def _warn(message: str, on_event: OnEvent | None) -> None:
    logger.warning(message)
    emit(on_event, Notice(message))
