"""The jobs of module-level quantisation: compare the formats, and quantise, measure, write."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from workbench.engine.errors import WrongState
from workbench.engine.events import FileWritten, Progress, check, emit
from workbench.engine.files.atomic import ensure_writable, write_text
from workbench.engine.files.tensor_folder import INDEX, ShardWriter
from workbench.engine.flows.folder_model import state_of
from workbench.engine.flows.module_quantize import (
    LayerReport,
    convert,
    quantization_report,
    quantize,
)
from workbench.engine.flows.quantize_folder import MANIFEST
from workbench.engine.graph.capture import copy_model
from workbench.engine.modules.quantize.base import BaseQuantizeModule
from workbench.engine.modules.quantize.rebuild import describe_deployed
from workbench.studio.formats_state import (
    QuantizedLayer,
    QuantizedModel,
    store_formats,
    store_quantized,
)
from workbench.studio.project import not_writable, safe_name, write_whole
from workbench.studio.tasks import Run

CASTS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def formats(run: Run) -> None:
    """The job: measure every layer alone in the formats asked for."""
    from workbench.engine.analysis.module_formats import compare_formats

    run.report.stages(2)
    run.report.stage("loading the model and the data")
    source = run.source
    run.report.stage("rounding each layer alone")
    found = compare_formats(
        copy_model(source.model),
        source.calibration,
        formats=run.args["formats"],
        on_event=run.report,
        cancel=run.cancel,
    )
    store_formats(run.store, found)


def quantize_modules(run: Run) -> None:
    """The job: ``quantize``, calibrate, measure, ``convert``, measure again, write."""
    start = time.perf_counter()
    configs: list[dict[str, Any]] = run.args["configs"]
    float_type = str(run.args["float_type"])
    dtype = CASTS.get(float_type)
    project, report, cancel = run.workspace.project, run.report, run.cancel
    report.stages(7)
    report.stage("loading the model and the data")
    source = run.source
    folder = project.exports / f"{safe_name(project.name)}_quantized"
    ensure_writable(folder / INDEX)
    report.stage("evaluating the float model")
    metric_float = (run.store.get("figures") or {}).get("metric_float")
    if metric_float is None:
        metric_float = source.metric(
            source.model, source.evaluation, on_event=report, cancel=cancel
        )
    report.stage("putting calibration modules in place")
    model = copy_model(source.model)
    if dtype is not None:
        _cast(model, dtype)
    for config in configs:
        quantize(model, config, any_dtype=float_type == "any", on_event=report, cancel=cancel)
    _require_quantized(quantization_report(model))
    # What is quantised has inputs of its own float type only with a cast around it.
    answering: nn.Module = model if dtype is None else _InFloatType(model, dtype)
    answering.eval()
    report.stage("calibrating")
    with torch.no_grad():
        for done, batch in enumerate(source.calibration, 1):
            check(cancel)
            answering(*batch)
            emit(report, Progress("calibration", done, len(source.calibration)))
    _require_calibrated(model, len(source.calibration))
    report.stage("evaluating the calibrated model")
    calibrated = source.metric(answering, source.evaluation, on_event=report, cancel=cancel)
    report.stage("converting")
    convert(model, on_event=report, cancel=cancel)
    report.stage("evaluating the converted model")
    converted = source.metric(answering, source.evaluation, on_event=report, cancel=cancel)
    layers = quantization_report(model)
    config_path = project.exports / f"{folder.name}.json"
    asked = {"configs": configs, "float_type": float_type, "layers": [asdict(x) for x in layers]}
    try:
        size = _write(model, folder)
    except OSError as error:
        raise not_writable(folder, error) from error
    write_whole(config_path, json.dumps(asked, indent=1, ensure_ascii=False) + "\n")
    emit(report, FileWritten(str(folder), size))
    result = QuantizedModel(
        metric_float=float(metric_float),
        metric_calibrated=float(calibrated),
        metric_converted=float(converted),
        bytes_float=_bytes(source.model),
        bytes_converted=_bytes(model),
        float_type=float_type,
        configs=tuple(configs),
        layers=tuple(
            QuantizedLayer(x.name, x.action, x.algorithm, x.formats, x.reason, x.note)
            for x in layers
        ),
        folder=str(folder),
        config_path=str(config_path),
        seconds=time.perf_counter() - start,
    )
    store_quantized(run.store, result)


def _require_quantized(layers: Sequence[LayerReport]) -> None:
    if any(layer.action != "float" for layer in layers):
        return
    reasons = list(dict.fromkeys(layer.reason for layer in layers))
    hint = "Choose other formats or layers."
    if any("the weight is" in reason for reason in reasons):
        hint = (
            "Cast the weights (float_type='bfloat16' or 'float16'), or take this float type "
            "for every format (float_type='any')."
        )
    raise WrongState(
        "no layer would be quantised: "
        + ("; ".join(reasons[:3]) or "the model has no layer that the algorithm takes"),
        where="quantize_modules",
        hint=hint,
    )


def _require_calibrated(model: nn.Module, batches: int) -> None:
    """Now, as the batches of the evaluation would be taken for the missing ones."""
    missing = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BaseQuantizeModule) and module.calls_missing()
    }
    if missing:
        name, module = next(iter(missing.items()))
        raise WrongState(
            f"{len(missing)} layers are not calibrated by {batches} batches: {name} has seen "
            f"{module.batch_num - module.calls_missing()} of {module.batch_num}",
            where="quantize_modules",
            hint="Give a smaller batch_num, open the project with more calibration batches, or "
            "leave the layers out with skip_layers.",
        )


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Floating tensors in ``dtype``; the parameters are new ones, as those here are the user's."""
    known: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_floating_point():
                if id(parameter) not in known:
                    known[id(parameter)] = nn.Parameter(parameter.detach().to(dtype), False)
                module._parameters[name] = known[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.to(dtype)


class _InFloatType(nn.Module):
    """Takes and answers float32 for a model of another float type."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, *args: Any) -> Any:
        return _floats(self.model(*_floats(args, self.dtype)), torch.float32)


def _floats(value: Any, dtype: torch.dtype) -> Any:
    return pytree.tree_map_only(
        Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, value
    )


def _bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in state_of(model, "").values())


def _write(model: nn.Module, folder: Path) -> int:
    """What ``load_quantized_folder`` reads, in place of an earlier one; bytes of all tensors."""
    described: dict[str, Mapping[str, Any]] = {}
    for name, module in model.named_modules():
        found = describe_deployed(module)
        if found is not None:
            described[name] = found
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        writer = ShardWriter(staging)
        writer.write(state_of(model, ""))
        size = writer.finish()
        write_text(
            staging / MANIFEST, json.dumps({"version": 1, "layers": described}, indent=1) + "\n"
        )
        if folder.exists():
            shutil.rmtree(folder)
        staging.rename(folder)
        folder.chmod(0o750)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return size
