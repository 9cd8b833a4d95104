"""Combined compression: prune first, then quantise, and train what is left.

Source: specification chapter 30 section 11.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from workbench.engine.errors import MissingFile, WrongState
from workbench.engine.events import CancelToken, OnEvent, check
from workbench.engine.export.save import output_paths
from workbench.engine.files.atomic import ensure_writable
from workbench.engine.files.config import CHANNEL_WISE_LINEAR
from workbench.engine.files.prune_config import configures_pruning
from workbench.engine.files.record import PruneRecord, Record, read_record, write_record
from workbench.engine.files.retrain_resolution import resolve_retrain_config
from workbench.engine.files.sidecar import Sidecar, read_sidecar, write_sidecar
from workbench.engine.flows.arguments import check_model, check_onnx_names, check_path, check_type
from workbench.engine.flows.checkpoints import load_state, read_state
from workbench.engine.flows.compress_config import CompressConfig, resolve_compress_config
from workbench.engine.flows.prune import (
    REPORT,
    THROUGH_LAYER_NORM,
    prune_channels,
    read_choice,
    read_prune_text,
    rebuild_pruned,
    save_prune_retrain_model,
)
from workbench.engine.flows.ptq import resolve_compat
from workbench.engine.flows.qat import report_float_layers, wrapped_like
from workbench.engine.flows.qat_equalize import equalize as equalize_channels
from workbench.engine.flows.qat_insert import insert_quantisers
from workbench.engine.flows.qat_layers import plan_treatment, retrain_layers
from workbench.engine.flows.qat_save import write_trained
from workbench.engine.flows.qat_state import (
    QatState,
    is_main_process,
    require_initialised,
    state_of,
    unwrapped,
    wrappers,
)
from workbench.engine.flows.selective import update_prune_record, wrap_selective_layers
from workbench.engine.graph.capture import Captured, capture
from workbench.engine.graph.copying import copy_for_training
from workbench.engine.graph.folding import plan_folding
from workbench.engine.graph.sources import input_names as graph_inputs
from workbench.engine.modules.sparsity.entries import masked_layers, selective_entries

log = logging.getLogger("workbench.engine.flows")


def create_compressed_retrain_model(
    model: nn.Module,
    input_data: Any,
    config_defination: str,
    record_file: str,
    *,
    through_layer_norm: bool = False,
    channel_wise_linear: bool = False,
    equalize: bool = True,
    compat: bool = False,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> nn.Module:
    """A copy of ``model``, pruned and with quantisers around its layers, as a text config says.

    What is pruned and what is quantised is decided layer by layer; a config may ask for one of the
    two only. Channels go first; layers with 2:4 sparsity see their masked weight quantised. Build
    the optimiser afterwards, train, run at least one batch in eval mode, and save.

    ``record_file`` gets the pruned part at once; every evaluation after a stretch of training adds
    the factors, and the masks as they are then. ``through_layer_norm``: see
    ``create_prune_retrain_model``. ``channel_wise_linear``: weights of Linear layers get one scale
    per output. ``equalize``: see ``create_quant_retrain_model``.

    Errors: ``TypeError`` for a wrong argument type; ``FileNotFoundError`` for a missing config,
    ``ParseError`` for one that is none, one ``ValueError`` with everything that is wrong in it;
    ``RuntimeError`` for a model that cannot be captured, copied or run, or holds compression
    modules already.

    Source: specification chapter 30 section 11.
    """
    function = "create_compressed_retrain_model"
    check_model(function, model)
    check_path(function, "config_defination", config_defination)
    check_path(function, "record_file", record_file)
    for name, value in (
        (THROUGH_LAYER_NORM, through_layer_norm),
        (CHANNEL_WISE_LINEAR, channel_wise_linear),
        ("equalize", equalize),
        ("compat", compat),
    ):
        check_type(function, name, value, bool)
    message = read_prune_text(config_defination, on_event)
    ensure_writable(record_file)
    inner = unwrapped(function, model)
    captured = capture(inner, input_data, dynamic=False, on_event=on_event)
    check(cancel)
    config = resolve_compress_config(
        message,
        captured,
        source=config_defination,
        channel_wise_linear=channel_wise_linear,
        compat=compat,
    )
    created: nn.Module = copy_for_training(inner)
    entries: tuple[PruneRecord, ...] = ()
    if config.prune.channel():
        pruned = prune_channels(
            inner,
            captured,
            config.prune,
            through_layer_norm=through_layer_norm,
            choice=read_choice(config_defination),
            compat=compat,
            on_event=on_event,
            cancel=cancel,
        )
        created, entries = pruned.model, pruned.records
        setattr(created, REPORT, pruned.report)
        captured = _captured_again(created, input_data, config, captured, on_event)
    check(cancel)
    wrap_selective_layers(created, config.prune.selective())
    given = {THROUGH_LAYER_NORM: through_layer_norm, CHANNEL_WISE_LINEAR: channel_wise_linear}
    options = {name: True for name, value in given.items() if value}
    state = _state(message, config_defination, captured, config, compat, record_file, options)
    if state is not None:
        state.pruned = entries
        _quantise(created, state, on_event)
        if equalize and not compat:
            equalize_channels(created, captured, state.config, state.treatments)
            for layer in masked_layers(created).values():
                layer.choose_mask()
    if is_main_process():
        record = Record(prune=(*entries, *selective_entries(created)))
        write_record(record_file, record, warn_if_exists=True)
        write_sidecar(record_file, Sidecar(compat=compat, options=options))
    return wrapped_like(model, created)


def restore_compressed_retrain_model(
    model: nn.Module,
    input_data: Any,
    config_defination: str,
    record_file: str,
    pth_file: str,
    state_dict_name: str | None = None,
    *,
    compat: bool | None = None,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> nn.Module:
    """The model that a config and its record describe, made of the dense ``model``.

    The record, which stays as it is, decides which channels go; the config which layers have 2:4
    masks and quantisers. ``pth_file``: what ``torch.save(model.state_dict(), ...)`` wrote, or a
    dict that holds the state dict under ``state_dict_name``; read with weights-only loading, names
    may begin with ``module.``. Checkpoints of the reference load as well.

    Errors: those of ``create_compressed_retrain_model``; ``FileNotFoundError`` for a missing
    checkpoint, and for a missing record if the config prunes; ``RuntimeError`` for a record that is
    none or another model's, and for a checkpoint that does not fit; ``KeyError`` for a
    ``state_dict_name`` that the checkpoint lacks.

    Source: specification chapter 30 section 11.
    """
    function = "restore_compressed_retrain_model"
    check_model(function, model)
    for name, path in (
        ("config_defination", config_defination),
        ("record_file", record_file),
        ("pth_file", pth_file),
    ):
        check_path(function, name, path)
    check_type(function, "state_dict_name", state_dict_name, str, optional=True)
    message = read_prune_text(config_defination, on_event)
    ensure_writable(record_file)
    record = _record_to_replay(record_file, pruning=configures_pruning(message))
    compat = resolve_compat(record_file, compat)
    checkpoint = read_state(pth_file, state_dict_name)
    inner = unwrapped(function, model)
    captured = capture(inner, input_data, dynamic=False, on_event=on_event)
    check(cancel)
    options = read_sidecar(record_file).options
    config = resolve_compress_config(
        message,
        captured,
        source=config_defination,
        channel_wise_linear=options.get(CHANNEL_WISE_LINEAR, False) is True,
        compat=compat,
    )
    entries = tuple(entry for entry in record.prune if entry.selective_prune is None)
    created: nn.Module = copy_for_training(inner)
    if entries:
        created = rebuild_pruned(inner, captured, record, record_file, cancel=cancel)
        captured = _captured_again(created, input_data, config, captured, on_event)
    check(cancel)
    recorded = {e.selective_prune.name: e for e in record.prune if e.selective_prune}
    wrap_selective_layers(created, config.prune.selective(), recorded, source=record_file)
    state = _state(message, config_defination, captured, config, compat, record_file, options)
    if state is not None:
        state.pruned = entries
        _quantise(created, state, on_event)
    removing = "" if record.prune else ", which removes nothing"
    made_of = f"the config and the record ({config_defination}, {record_file}{removing})"
    load_state(created, checkpoint, pth_file, created=made_of)
    return wrapped_like(model, created)


def save_compressed_retrain_model(
    model: nn.Module,
    record_file: str,
    save_path: str,
    input_data: Any,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    dynamic_axes: Mapping[str, Any] | None = None,
    *,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> None:
    """Write the ONNX files of a model in training, and bring its record up to date.

    With quantisers the files are those of ``save_quant_retrain_model``; 2:4 weights have their
    zeros as integer zeros. A model that is only pruned is written as two equal float files. The
    model, in whatever mode, stays as it is and can be trained on.

    Errors: ``TypeError`` for a wrong argument type, ``ValueError`` for a path that names no file;
    ``FileNotFoundError`` for a missing record; ``RuntimeError`` for an empty one (of a quantised
    model: there was no inference yet), for clip bounds that are not found yet, and for a model that
    cannot be captured or that no create or restore function of this process returned.

    Source: specification chapter 30 section 11.4.
    """
    function = "save_compressed_retrain_model"
    check_model(function, model)
    check_path(function, "record_file", record_file)
    check_type(function, "save_path", save_path, str)
    check_onnx_names(function, input_names, output_names, dynamic_axes)
    paths = output_paths(save_path)
    trained = unwrapped(function, model)
    record = read_record(record_file)
    if not wrappers(trained):
        if not record.prune:
            raise WrongState(
                "the model has no quantisers, and the record nothing that was pruned",
                where=record_file,
                hint="Give the model that create_ or restore_compressed_retrain_model returned.",
            )
        names = (input_names, output_names, dynamic_axes)
        save_prune_retrain_model(
            trained, save_path, input_data, *names, on_event=on_event, cancel=cancel
        )
        if masked_layers(trained):
            update_prune_record(trained, record_file)
        log.info("%s and %s are the same float model", paths.deploy, paths.fake_quant)
        return
    state = state_of(trained)
    if state is not None:
        require_initialised(function, trained, state.config.batch_num)
    if not is_main_process():
        log.info("rank 0 writes the files")
        return
    if not record.layers:
        raise WrongState(
            "the record holds no factors: there was no inference yet",
            where=record_file,
            hint="Call model.eval() and run at least one batch.",
        )
    write_trained(
        trained,
        record_file,
        paths,
        input_data,
        input_names,
        output_names,
        dynamic_axes,
        on_event=on_event,
        cancel=cancel,
    )


def _captured_again(
    created: nn.Module,
    input_data: Any,
    config: CompressConfig,
    captured: Captured,
    on_event: OnEvent | None,
) -> Captured:
    """The capture of a model that has lost channels, if something is going to read it."""
    if config.quant is None:
        return captured
    return capture(created, input_data, dynamic=False, on_event=on_event)


def _state(
    message: Any,
    source: str,
    captured: Captured,
    config: CompressConfig,
    compat: bool,
    record_file: str,
    options: Mapping[str, Any],
) -> QatState | None:
    """What quantises the captured model; None if nothing does."""
    quant = config.quant
    if quant is None:
        return None
    layers = retrain_layers(captured)
    if config.prune.channel():
        # Once more: what a layer can be quantised to depends on the channels it has left.
        quant = resolve_retrain_config(
            message,
            layers,
            source=source,
            combined=True,
            compat=compat,
            channel_wise_linear=options.get(CHANNEL_WISE_LINEAR, False) is True,
            again=True,
        )
    folding = plan_folding(captured, sync=True)
    return QatState(
        config=quant,
        compat=compat,
        record_file=record_file,
        layers=layers,
        treatments=plan_treatment(captured, quant, folding, compat=compat),
        taps=captured.taps,
        inputs=graph_inputs(captured),
        options=options,
    )


def _quantise(created: nn.Module, state: QatState, on_event: OnEvent | None) -> None:
    insert_quantisers(created, state.config, state.layers, state.treatments)
    state.attach(created)
    report_float_layers(state.float_reasons, on_event)


def _record_to_replay(record_file: str, *, pruning: bool) -> Record:
    if not Path(record_file).is_file():
        if pruning:
            raise MissingFile(
                "the record does not exist; it says what was pruned", where=record_file
            )
        return Record()
    record = read_record(record_file)
    if record.prune and not pruning:
        raise WrongState(
            "it says what was pruned, but the config prunes nothing",
            where=record_file,
            hint="Give the config that the record was written for.",
        )
    return record
