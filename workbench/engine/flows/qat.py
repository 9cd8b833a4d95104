"""Quantisation-aware training of a model's graph: configuration, creation, restoring.

Source: specification chapter 30 sections 1 to 6. The last step of the flow,
``save_quant_retrain_model``, is in ``flows.qat_save``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from workbench.engine.errors import MissingFile
from workbench.engine.events import CancelToken, Notice, OnEvent, check, emit
from workbench.engine.files.atomic import ensure_writable, write_text
from workbench.engine.files.config import CHANNEL_WISE_LINEAR
from workbench.engine.files.record import Record, write_record
from workbench.engine.files.retrain_config import default_retrain_config, read_retrain_config
from workbench.engine.files.retrain_resolution import resolve_retrain_config
from workbench.engine.files.retrain_text import load_retrain_text_config
from workbench.engine.files.sidecar import Sidecar, write_sidecar
from workbench.engine.flows.arguments import check_model, check_path, check_type
from workbench.engine.flows.checkpoints import load_state, read_state
from workbench.engine.flows.ptq import resolve_compat
from workbench.engine.flows.qat_equalize import equalize as equalize_channels
from workbench.engine.flows.qat_insert import insert_quantisers
from workbench.engine.flows.qat_layers import float_reasons, plan_treatment, retrain_layers
from workbench.engine.flows.qat_state import QatState, is_main_process, state_of, unwrapped
from workbench.engine.graph.capture import capture
from workbench.engine.graph.copying import copy_for_training
from workbench.engine.graph.folding import plan_folding
from workbench.engine.graph.sources import input_names

log = logging.getLogger("workbench.engine.flows.qat")


def create_quant_retrain_config(
    config_file: str,
    model: nn.Module,
    input_data: Any,
    config_defination: str | None = None,
    *,
    channel_wise_linear: bool = False,
    compat: bool = False,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> None:
    """Write a JSON config with one entry for every layer that can be trained for quantisation.

    ``input_data``: a tuple of example inputs (or one tensor), used for its shapes only.
    ``config_defination``: a text config (``.cfg``) that decides; None: defaults for every layer.
    ``channel_wise_linear``: weights of Linear layers get one scale per output. ``compat``: the
    reference's rules of precedence in a text config, and of ``fixed_min`` later. The model is not
    changed.

    Errors: ``TypeError`` for a wrong argument type; ``FileNotFoundError`` for a missing text
    config, ``ParseError`` for one that is none, one ``ValueError`` with everything that is wrong in
    it; ``ValueError`` for a model without a layer to train; ``RuntimeError`` for one that cannot be
    captured or holds quantisers already, and for a ``DataParallel``.

    Source: specification chapter 30 section 2.1.
    """
    function = "create_quant_retrain_config"
    check_path(function, "config_file", config_file)
    check_model(function, model)
    if config_defination is not None:
        check_path(function, "config_defination", config_defination)
    check_type(function, "channel_wise_linear", channel_wise_linear, bool)
    check_type(function, "compat", compat, bool)
    message = None if config_defination is None else load_retrain_text_config(config_defination)
    ensure_writable(config_file)
    captured = capture(unwrapped(function, model), input_data, dynamic=False, on_event=on_event)
    check(cancel)
    layers = retrain_layers(captured)
    if message is None:
        config = default_retrain_config(layers, channel_wise_linear=channel_wise_linear)
    else:
        config = resolve_retrain_config(
            message,
            layers,
            source=str(config_defination),
            compat=compat,
            channel_wise_linear=channel_wise_linear,
        )
    report_float_layers(float_reasons(layers, config.enabled()), on_event)
    write_text(config_file, config.to_json(), warn_if_exists=True)
    options = {CHANNEL_WISE_LINEAR: True} if channel_wise_linear else {}
    write_sidecar(config_file, Sidecar(compat=compat, options=options))


def create_quant_retrain_model(
    config_file: str,
    model: nn.Module,
    record_file: str,
    input_data: Any,
    *,
    equalize: bool = True,
    compat: bool | None = None,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> nn.Module:
    """A copy of ``model`` with quantisers around the layers that the config enables.

    Train it like any model; build the optimiser after this call, so that it gets the clip bounds.
    The first ``batch_num`` forwards find the bounds that the config leaves open. Every evaluation
    after a stretch of training writes ``record_file``, which starts out empty. Train and eval mode
    are kept; a ``DistributedDataParallel`` model comes back as one, over the new parameters. What
    was done to each layer is in ``model.workbench_qat.treatments``, why the others stay float in
    ``model.workbench_qat.float_reasons``.

    ``equalize``: channels that are small beside others of their tensor are scaled up by powers of
    two where a batch norm and a ReLU allow it, which leaves the float model's outputs as they are;
    never with ``compat``.

    Errors: ``FileNotFoundError`` for a missing config; one ``ValueError``/``TypeError`` with all
    that is wrong in it; ``RuntimeError`` for a model that cannot be captured or copied or holds
    quantisers already, and for a ``DataParallel``.

    Source: specification chapter 30 sections 2.2, 4 and 5.
    """
    function = "create_quant_retrain_model"
    check_type(function, "equalize", equalize, bool)
    created = _create(
        function, config_file, model, record_file, input_data, equalize, compat, on_event, cancel
    )
    return _begin_record(model, created)


def restore_quant_retrain_model(
    config_file: str,
    model: nn.Module,
    record_file: str,
    input_data: Any,
    pth_file: str,
    state_dict_name: str | None = None,
    *,
    compat: bool | None = None,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> nn.Module:
    """``create_quant_retrain_model`` of the float ``model``, then the state of a checkpoint.

    ``pth_file``: what ``torch.save(model.state_dict(), ...)`` wrote, or a dict that holds the state
    dict under ``state_dict_name``; read with weights-only loading. Names may begin with
    ``module.``, as those of a ``DistributedDataParallel``. The config must be the one that the
    checkpoint's model was created with. Checkpoints of the reference load as well. The clip bounds
    are taken as they are: nothing is searched again.

    Errors: those of ``create_quant_retrain_model``; ``FileNotFoundError`` for a missing checkpoint;
    ``KeyError`` for a ``state_dict_name`` that it lacks; ``RuntimeError`` for a file that is no
    checkpoint or does not fit the model and the config.

    Source: specification chapter 30 sections 2.3 and 6.
    """
    function = "restore_quant_retrain_model"
    check_path(function, "pth_file", pth_file)
    check_type(function, "state_dict_name", state_dict_name, str, optional=True)
    state = read_state(pth_file, state_dict_name)
    created = _create(
        function, config_file, model, record_file, input_data, False, compat, on_event, cancel
    )
    load_state(created, state, pth_file, created=f"the config ({config_file})")
    return _begin_record(model, created)


def _create(
    function: str,
    config_file: str,
    model: nn.Module,
    record_file: str,
    input_data: Any,
    even: bool,
    compat: bool | None,
    on_event: OnEvent | None,
    cancel: CancelToken | None,
) -> nn.Module:
    check_path(function, "config_file", config_file)
    check_path(function, "record_file", record_file)
    check_model(function, model)
    if not Path(config_file).is_file():
        raise MissingFile(f"{config_file} does not exist", where=f"{function}() config_file")
    ensure_writable(record_file)
    compat = resolve_compat(config_file, compat)
    inner = unwrapped(function, model)
    captured = capture(inner, input_data, dynamic=False, on_event=on_event)
    check(cancel)
    layers = retrain_layers(captured)
    config = read_retrain_config(config_file, layers)
    treatments = plan_treatment(captured, config, plan_folding(captured, sync=True), compat=compat)
    created = copy_for_training(inner)
    insert_quantisers(created, config, layers, treatments)
    if even and not compat:
        equalize_channels(created, captured, config, treatments)
    state = QatState(
        config=config,
        compat=compat,
        record_file=record_file,
        layers=layers,
        treatments=treatments,
        taps=captured.taps,
        inputs=input_names(captured),
    )
    state.attach(created)
    for name, treatment in treatments.items():
        log.info("%s: %s", name, treatment)
    report_float_layers(state.float_reasons, on_event)
    return created


def _begin_record(model: nn.Module, created: nn.Module) -> nn.Module:
    """Empty the record, now that nothing can fail; ``created``, wrapped as ``model`` is."""
    state = state_of(created)
    assert state is not None
    if is_main_process():
        write_record(state.record_file, Record(), warn_if_exists=True)
        write_sidecar(state.record_file, Sidecar(compat=state.compat))
    return wrapped_like(model, created)


def wrapped_like(model: nn.Module, created: nn.Module) -> nn.Module:
    """``created``, wrapped for distributed training if ``model`` is."""
    if not isinstance(model, DistributedDataParallel):
        return created
    # A new one: the reducer of the old knows nothing of the clip bounds.
    return DistributedDataParallel(
        created,
        device_ids=model.device_ids,
        output_device=model.output_device,
        broadcast_buffers=model.broadcast_buffers,
        process_group=model.process_group,
        find_unused_parameters=model.find_unused_parameters,
        gradient_as_bucket_view=model.gradient_as_bucket_view,
        static_graph=model.static_graph,
    )


def report_float_layers(reasons: Mapping[str, str], on_event: OnEvent | None) -> None:
    """Say which layers are not quantised, and why, in the log and as an event."""
    if reasons:
        lines = "".join(f"\n  {name}: {reason}" for name, reason in reasons.items())
        message = f"Layers that stay float:{lines}"
        log.info(message)
        emit(on_event, Notice(message))
