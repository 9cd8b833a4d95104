"""Post-training quantisation: ``create_quant_config`` and ``quantize_model``.

Source: specification chapter 10 sections 3, 4 and 11. The last step of the flow, ``save_model``,
needs only files and lives in ``engine.export.save``.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import nn

from workbench.engine.errors import MissingFile, WrongState, WrongValue
from workbench.engine.events import CancelToken, OnEvent
from workbench.engine.export.float_onnx import to_onnx
from workbench.engine.export.onnx_file import save_onnx
from workbench.engine.files.atomic import ensure_writable, write_text
from workbench.engine.files.config import (
    CHANNEL_WISE_LINEAR,
    QuantConfig,
    default_config,
    read_config,
)
from workbench.engine.files.record import Record, read_record, write_record
from workbench.engine.files.sidecar import Sidecar, read_sidecar, write_sidecar
from workbench.engine.files.text_config import load_text_config, resolve_text_config
from workbench.engine.flows.arguments import (
    check_model,
    check_names,
    check_onnx_names,
    check_path,
    check_type,
)
from workbench.engine.flows.balancing import Factors, balanced_layers, factors_of, find_balance
from workbench.engine.flows.calibration import Calibration
from workbench.engine.flows.layer_data import Batch
from workbench.engine.flows.ranges import with_input_names
from workbench.engine.flows.rounding import learned_layers
from workbench.engine.graph.capture import Captured, capture
from workbench.engine.graph.inputs import split_inputs
from workbench.engine.graph.sources import input_names as graph_inputs

logger = logging.getLogger("workbench.engine.flows")


def create_quant_config(
    config_file: str,
    model: nn.Module,
    input_data: Any,
    skip_layers: list[str] | None = None,
    batch_num: int = 1,
    activation_offset: bool = True,
    config_defination: str | None = None,
    *,
    channel_wise_linear: bool = False,
    compat: bool = False,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> None:
    """Write a JSON config with one entry for every layer that can be quantised.

    ``input_data``: a tuple of example inputs (or one tensor), used for its shapes only. Layers in
    ``skip_layers`` are listed with ``quant_enable: false``. ``config_defination``: a text config
    (``.cfg``) that decides instead of the three arguments before it. ``channel_wise_linear``:
    weights of Linear layers get one scale per output. The model is not changed.

    Errors: ``TypeError`` for a wrong argument type; ``ValueError`` for a name that is unknown, not
    quantisable or repeated, for nothing left to quantise, for ``batch_num <= 0`` and for what is
    wrong in the text config (``FileNotFoundError`` when it is missing); ``RuntimeError`` for a
    model that cannot be captured.

    Source: specification chapter 10 section 3.1.
    """
    function = "create_quant_config"
    check_path(function, "config_file", config_file)
    check_model(function, model)
    check_names(function, "skip_layers", skip_layers)
    check_type(function, "batch_num", batch_num, int)
    check_type(function, "activation_offset", activation_offset, bool)
    if config_defination is not None:
        check_path(function, "config_defination", config_defination)
    check_type(function, "channel_wise_linear", channel_wise_linear, bool)
    text = None if config_defination is None else load_text_config(config_defination)
    if text is not None and skip_layers:
        logger.warning("skip_layers is ignored: %s decides", config_defination)
    ensure_writable(config_file)
    captured = capture(model, input_data, dynamic=False, on_event=on_event)
    if cancel is not None:
        cancel.check()
    if text is None:
        config = default_config(
            captured.layers,
            skip_layers=skip_layers,
            batch_num=batch_num,
            activation_offset=activation_offset,
            channel_wise_linear=channel_wise_linear,
        )
    else:
        config = resolve_text_config(
            text,
            captured.layers,
            modules=[name for name, _ in model.named_modules()],
            channel_wise_linear=channel_wise_linear,
        )
    write_text(config_file, config.to_json(), warn_if_exists=True)
    options = {CHANNEL_WISE_LINEAR: True} if channel_wise_linear else {}
    write_sidecar(config_file, Sidecar(compat=compat, options=options))


def quantize_model(
    config_file: str,
    modfied_onnx_file: str,
    record_file: str,
    model: nn.Module,
    input_data: Any,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    dynamic_axes: Mapping[str, Any] | None = None,
    *,
    compat: bool | None = None,
    calibration_data: Iterable[Any] | None = None,
    memory_budget_mb: int = 256,
    sample_limit: int | None = None,
    sequential: bool = False,
    seed: int = 0,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> nn.Module:
    """Quantise the weights and return the calibration model.

    Run the returned model on ``batch_num`` batches; when the last layer has seen them, the record
    file is complete. It is a copy: the user's model stays as it is. ``model.calibration`` tells
    ``is_done`` and ``missing()``, and its ``finalize()`` closes a calibration early.

    ``memory_budget_mb`` bounds what is kept of the activations; ``sample_limit`` is the most values
    a layer and batch that are looked at (None: all).

    Layers with ``ada_quantize`` learn their rounding here, on ``calibration_data`` (each item like
    ``input_data``) or, without it, on ``input_data``: give real data, not random numbers. ``seed``
    decides which samples each step draws.

    ``sequential``: each layer's activation is calibrated on what the quantised layers before it
    give (D5). The inputs of all batches are kept, within ``memory_budget_mb``, and go through the
    model side by side with the last one.

    With a DMQ balancer in the config ``record_file`` must hold the balance factors that the model
    of ``quantize_preprocess`` found.

    Errors: ``FileNotFoundError`` for a missing config; ``ValueError``/``TypeError`` for what is
    wrong in it; ``RuntimeError`` when nothing is enabled or the model cannot be captured; with a
    DMQ balancer ``RuntimeError`` for an empty record, ``ValueError`` for a layer without factors.

    Source: specification chapter 10 sections 3.3 and 11.
    """
    function = "quantize_model"
    check_path(function, "config_file", config_file)
    check_path(function, "modfied_onnx_file", modfied_onnx_file)
    check_path(function, "record_file", record_file)
    check_model(function, model)
    check_onnx_names(function, input_names, output_names, dynamic_axes)
    if not Path(config_file).is_file():
        raise MissingFile(f"{config_file} does not exist", where=f"{function}() config_file")
    for path in (modfied_onnx_file, record_file):
        ensure_writable(path)
    captured = capture(model, input_data, on_event=on_event)
    config = read_config(config_file, captured.layers)
    compat = resolve_compat(config_file, compat)
    balance = _recorded_balance(captured, config, record_file)

    def finished(record: Record) -> None:
        write_record(record_file, record)
        write_sidecar(record_file, named_sidecar(calibration, captured, input_names))

    calibration = Calibration(
        captured,
        config,
        balance=balance,
        calibration_data=None
        if calibration_data is None
        else (split_inputs(item) for item in calibration_data),
        memory_budget_mb=memory_budget_mb,
        sample_limit=sample_limit,
        sequential=sequential,
        seed=seed,
        compat=compat,
        on_finished=finished,
        on_event=on_event,
        cancel=cancel,
    )
    modified = modified_onnx(calibration, input_names, output_names, dynamic_axes)
    save_onnx(modified, modfied_onnx_file, suffix=".external")
    write_record(record_file, calibration.initial_record(), warn_if_exists=True)
    write_sidecar(record_file, Sidecar(compat=compat))
    return calibration.model


def _recorded_balance(captured: Captured, config: QuantConfig, record_file: str) -> Factors:
    if not balanced_layers(config, captured.layers):
        return {}
    path = Path(record_file)
    if not path.is_file() or not path.stat().st_size:
        raise WrongState(
            "the config has a dmq_balancer_param, but this record holds no balance factors",
            where=record_file,
            hint="Run the model that quantize_preprocess returns on one batch first.",
        )
    return factors_of(read_record(path), config, captured.layers, source=record_file)


def modified_onnx(
    calibration: Calibration,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    dynamic_axes: Mapping[str, Any] | None = None,
) -> ir.Model:
    """The folded graph with fake-quantised weights; enabled layers carry their dtype."""
    captured = calibration.captured
    model = to_onnx(
        captured,
        calibration.plan,
        weights=calibration.fake_weights,
        input_names=input_names,
        output_names=output_names,
        dynamic_axes=dynamic_axes,
    )
    mark_data_types(model, calibration.config.enabled())
    return model


def mark_data_types(model: ir.Model, names: Collection[str]) -> None:
    """Give the layers ``names`` the attribute that tells the export float from float16."""
    for node in model.graph:
        if node.name in names:
            values = (*node.inputs, *node.outputs)
            half = any(v is not None and v.dtype == ir.DataType.FLOAT16 for v in values)
            node.attributes["op_data_type"] = ir.AttrString(
                "op_data_type", "float16" if half else "float"
            )


def named_sidecar(
    calibration: Calibration, captured: Captured, input_names: list[str] | None
) -> Sidecar:
    """The calibration's sidecar with graph inputs under the names they have in the ONNX files."""
    sidecar = calibration.sidecar()
    ranges = with_input_names(sidecar.ranges, graph_inputs(captured), input_names)
    return Sidecar(compat=sidecar.compat, ranges=ranges, options=sidecar.options)


def resolve_compat(config_file: str, compat: bool | None) -> bool:
    """The config's stored ``compat``; an argument that contradicts it is a ``ValueError``."""
    stored = read_sidecar(config_file).compat
    if compat is not None and compat != stored:
        raise WrongValue(
            f"compat={compat} contradicts the config, which was created with compat={stored}",
            where=config_file,
            hint="create the config again with the compat you want.",
        )
    return stored


def calibrate(captured: Captured, config: QuantConfig, batches: Any, **options: Any) -> Calibration:
    """Run a calibration on an iterable of input tuples and return it finished.

    A dict at the end of a tuple holds keyword arguments. ``options`` are those of ``Calibration``.
    Where they are not given, AdaRound learns on the ``batch_num`` batches and balance factors come
    from the first one, as with ``quantize_preprocess``. Errors: ``RuntimeError`` when the batches
    end before ``batch_num``.
    """
    rest: Iterator[Batch] = (
        split_inputs(batch if isinstance(batch, tuple) else (batch,)) for batch in batches
    )
    if "balance" not in options and balanced_layers(config, captured.layers):
        first = next(rest, None)
        if first is None:
            raise WrongState("there is no batch", where="calibration data")
        args, kwargs = first
        options["balance"] = find_balance(captured, config, lambda model: model(*args, **kwargs))
        rest = itertools.chain([first], rest)
    if "calibration_data" not in options and learned_layers(config):
        options["calibration_data"] = list(itertools.islice(rest, config.batch_num))
        rest = itertools.chain(options["calibration_data"], rest)
    calibration = Calibration(captured, config, **options)
    for args, kwargs in rest:
        calibration.model(*args, **kwargs)
        if calibration.is_done:
            break
    calibration.finalize()
    return calibration
