"""Post-training quantisation: ``create_quant_config`` and ``quantize_model``.

Source: specification chapter 10 sections 3, 4 and 11. The last step of the flow, ``save_model``,
needs only files and lives in ``engine.export.save``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from workbench.engine.errors import MissingFile, WrongValue
from workbench.engine.events import CancelToken, OnEvent
from workbench.engine.export.float_onnx import to_onnx
from workbench.engine.export.onnx_file import save_onnx
from workbench.engine.files.atomic import ensure_writable, write_text
from workbench.engine.files.config import QuantConfig, default_config, read_config
from workbench.engine.files.record import Record, write_record
from workbench.engine.files.sidecar import Sidecar, read_sidecar, write_sidecar
from workbench.engine.flows.arguments import check_model, check_onnx_names, check_path, check_type
from workbench.engine.flows.calibration import Calibration
from workbench.engine.graph.capture import Captured, capture
from workbench.engine.graph.sources import input_names as graph_inputs


def create_quant_config(
    config_file: str,
    model: nn.Module,
    input_data: Any,
    skip_layers: list[str] | None = None,
    batch_num: int = 1,
    activation_offset: bool = True,
    config_defination: str | None = None,
    *,
    compat: bool = False,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> None:
    """Write a JSON config with one entry for every layer that can be quantised.

    ``input_data``: a tuple of example inputs (or one tensor), used for its shapes only. Layers in
    ``skip_layers`` are listed with ``quant_enable: false``. The model is not changed.

    Errors: ``TypeError`` for a wrong argument type; ``ValueError`` for a name that is unknown, not
    quantisable or repeated, for nothing left to quantise and for ``batch_num <= 0``;
    ``RuntimeError`` for a model that cannot be captured.

    Source: specification chapter 10 section 3.1.
    """
    function = "create_quant_config"
    check_path(function, "config_file", config_file)
    check_model(function, model)
    check_type(function, "skip_layers", skip_layers, list, optional=True)
    check_type(function, "batch_num", batch_num, int)
    check_type(function, "activation_offset", activation_offset, bool)
    check_type(function, "config_defination", config_defination, str, optional=True)
    if config_defination is not None:
        raise WrongValue(
            "text configs (.cfg) are not in this version",
            where=f"{function}()",
            hint="leave config_defination out and edit the JSON config instead.",
        )
    ensure_writable(config_file)
    captured = capture(model, input_data, on_event=on_event)
    if cancel is not None:
        cancel.check()
    config = default_config(
        captured.layers,
        skip_layers=skip_layers,
        batch_num=batch_num,
        activation_offset=activation_offset,
    )
    write_text(config_file, config.to_json(), warn_if_exists=True)
    write_sidecar(config_file, Sidecar(compat=compat))


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
    memory_budget_mb: int = 256,
    sample_limit: int | None = None,
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

    Errors: ``FileNotFoundError`` for a missing config; ``ValueError``/``TypeError`` for what is
    wrong in it; ``RuntimeError`` when nothing is enabled or the model cannot be captured.

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

    def finished(record: Record) -> None:
        write_record(record_file, record)
        write_sidecar(record_file, named_sidecar(calibration, captured, input_names))

    calibration = Calibration(
        captured,
        config,
        memory_budget_mb=memory_budget_mb,
        sample_limit=sample_limit,
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
    enabled = set(calibration.config.enabled())
    for node in model.graph:
        if node.name in enabled:
            weight = getattr(captured.module.get_submodule(node.name), "weight", None)
            half = weight is not None and weight.dtype == torch.float16
            node.attributes["op_data_type"] = ir.AttrString(
                "op_data_type", "float16" if half else "float"
            )
    return model


def named_sidecar(
    calibration: Calibration, captured: Captured, input_names: list[str] | None
) -> Sidecar:
    """The calibration's sidecar with graph inputs under the names they have in the ONNX files."""
    sidecar = calibration.sidecar()
    renamed = {
        f"input:{old}": f"input:{new}"
        for old, new in zip(graph_inputs(captured), input_names or (), strict=False)
    }
    ranges = {renamed.get(key, key): value for key, value in sidecar.ranges.items()}
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

    ``options`` are those of ``Calibration``. Errors: ``RuntimeError`` when the batches end before
    ``batch_num``.
    """
    calibration = Calibration(captured, config, **options)
    for batch in batches:
        args = batch if isinstance(batch, tuple) else (batch,)
        calibration.model(*args)
        if calibration.is_done:
            break
    calibration.finalize()
    return calibration
