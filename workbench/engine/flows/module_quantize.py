"""``quantize`` and ``convert``: layers are replaced in place, without a graph and without files."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import nn

from workbench.engine.errors import WrongState, WrongValue
from workbench.engine.events import CancelToken, Notice, OnEvent, Progress, check, emit
from workbench.engine.flows.arguments import check_model
from workbench.engine.flows.module_quantize_config import parse_config
from workbench.engine.flows.module_quantize_rules import TARGETS, Target
from workbench.engine.flows.module_quantize_selection import (
    LeftLayer,
    PlannedLayer,
    Selection,
    places,
    replace_everywhere,
    select,
)
from workbench.engine.modules.quantize import fp8_linear
from workbench.engine.modules.quantize.base import BaseQuantizeModule
from workbench.engine.modules.quantize.registry import deploy_class

logger = logging.getLogger("workbench.engine.flows")

REPORT = "_quant_report"

_SCALE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_HALVES = (torch.float16, torch.bfloat16)

Action = Literal["calibrating", "converted", "float"]


@dataclass(frozen=True)
class LayerReport:
    """What became of a layer.

    ``action``: "calibrating", "converted" or "float". ``kind`` is the class it had, ``formats``
    what it was to become ("int8/int8"; "–/int4": inputs stay float). ``reason``: why it stayed
    float; ``note``: what a converted layer computes otherwise than the calibrated one.
    """

    name: str
    kind: str
    action: Action
    reason: str = ""
    algorithm: str = ""
    formats: str = ""
    note: str = ""


def quantize(
    model: nn.Module,
    config: dict[str, Any] | None = None,
    *,
    target: Target = "portable",
    any_dtype: bool = False,
    compat: bool = False,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> None:
    """Replace the layers that ``config`` selects by calibration modules, in place.

    Run ``batch_num`` batches through the model, then call ``convert``. Weights are only read, and
    ``config`` (None: INT8_MINMAX_WEIGHT_QUANT_CFG) is not changed. ``quantization_report(model)``
    says which layers were replaced and why others were not; that nothing was is a warning.

    ``target``: "portable", or "npu" for the size rules of that accelerator's operators.
    ``any_dtype``: take float32, float16 and bfloat16 layers whatever the formats. ``compat``: the
    reference's hifloat8 scales of weights in cast and quantile, for which negative weights do not
    count.

    Raises ``TypeError`` for a model or configuration of another type; ``ValueError`` listing what
    is wrong with the configuration; ``RuntimeError`` or ``ValueError`` naming a layer whose weight
    holds inf or NaN. Then, and when cancelled, the model is as before. Chapter 25 sections 1-3.
    """
    check_model("quantize", model)
    if target not in TARGETS:
        raise WrongValue(f"target is {target!r}; allowed: {', '.join(TARGETS)}", where="quantize()")
    selection = select(
        model, parse_config(config), target=target, any_dtype=any_dtype, compat=compat
    )
    built: list[tuple[PlannedLayer, nn.Module]] = []
    for layer in selection.planned:
        check(cancel)
        built.append((layer, layer.build()))
        emit(on_event, Progress("quantize", len(built), len(selection.planned)))
    replaced = {layer.module: new for layer, new in built}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in replaced:
                parent._modules[name] = replaced[child]
    earlier = {entry.name: entry for entry in vars(model).get(REPORT, ())}
    taken = sum(entry.action != "float" for entry in earlier.values())
    fresh = _report(model, selection)
    # Layers of an earlier call stay in the report, unless this one took them.
    kept = [e for e in earlier.values() if e.action != "float" and e.name not in fresh]
    setattr(model, REPORT, (*kept, *fresh.values()))
    for note in _warnings(selection, taken):
        logger.warning(note)
        emit(on_event, Notice(note))


def convert(
    model: nn.Module,
    *,
    scale_dtype: Literal["float32", "float16", "bfloat16"] | None = None,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> nn.Module:
    """Replace every calibrated module by one that computes on small codes, in place.

    Returns ``model``. Modules of the class ``FP8Linear`` become hifloat8 on the way, unless the
    ``skip_layers`` of ``quantize`` kept them out. Converted modules stay. ``scale_dtype``: type of
    the scales that the reference keeps in the layer's own float type (None), whose rounding is
    part of the difference between a calibrated and a converted model. Custom modules that have
    nothing to become stay, with a warning. To load what ``state_dict`` gives in another process,
    take the float model through ``quantize``, any one batch and ``convert`` there, then load.

    Raises ``TypeError`` for what is no Module, and ``RuntimeError`` listing the layers that have
    not seen their batches; the model is as before then. When cancelled, layers converted so far
    stay so: call again to go on. Chapter 25 section 8.
    """
    check_model("convert", model)
    if scale_dtype is not None and scale_dtype not in _SCALE_DTYPES:
        allowed = ", ".join(_SCALE_DTYPES)
        raise WrongValue(f"scale_dtype is {scale_dtype!r}; allowed: {allowed}", where="convert()")
    found = [
        (names[0], module)
        for names, module in places(model)
        if isinstance(module, BaseQuantizeModule) or type(module).__name__ == fp8_linear.SOURCE
    ]
    _check_calibrated(found)
    report = {entry.name: entry for entry in vars(model).get(REPORT, ())}
    unchanged: list[str] = []
    total = len(found)
    found.reverse()
    while found:
        check(cancel)
        # Nothing here holds on to a layer whose weight is replaced by a smaller one.
        name, module = found.pop()
        entry = report.get(name, LayerReport(name, type(module).__name__, "float"))
        new: nn.Module | None = None
        if not isinstance(module, BaseQuantizeModule):
            if not entry.reason.startswith("skip_layers"):
                new = fp8_linear.NpuHIF8Linear(module, name)
                entry = replace(entry, algorithm="cast", formats="hifloat8/hifloat8")
        elif (deploy := deploy_class(module)) is not None:
            module.scale_dtype = _SCALE_DTYPES.get(scale_dtype or "")
            new = cast(Any, deploy)(module)
        else:
            unchanged.append(name)
        if new is not None:
            new.train(module.training)
            replace_everywhere(model, module, new)
            report[name] = replace(entry, action="converted", reason="", note=_rounding(new))
        emit(on_event, Progress("convert", total - len(found), total))
    setattr(model, REPORT, tuple(report.values()))
    if unchanged:
        logger.warning(
            "layers without a deploy module keep their calibration module: %s",
            ", ".join(unchanged),
        )
    return model


def quantization_report(model: nn.Module) -> tuple[LayerReport, ...]:
    """What ``quantize`` and ``convert`` did to each layer, and why they left the others.

    Raises ``RuntimeError`` when the model went through neither.
    """
    check_model("quantization_report", model)
    report = vars(model).get(REPORT)
    if report is None:
        raise WrongState(
            "the model has no report", where="quantization_report()", hint="Call quantize() first."
        )
    return cast(tuple[LayerReport, ...], report)


def _rounding(module: nn.Module) -> str:
    """That scales are stored in a narrower type than they were calibrated in."""
    scales = (module._buffers.get(name) for name in ("act_scale", "scale_w", "scale_factor"))
    narrow = {str(s.dtype) for s in scales if s is not None and s.dtype in _HALVES}
    return f"scales are rounded to {narrow.pop().removeprefix('torch.')}" if narrow else ""


def _check_calibrated(found: list[tuple[str, nn.Module]]) -> None:
    pending = [
        f"- {name}: {module.batch_num - missing} of {module.batch_num} calls seen"
        for name, module in found
        if isinstance(module, BaseQuantizeModule) and (missing := module.calls_missing())
    ]
    if pending:
        raise WrongState(
            f"{len(pending)} layers are not calibrated yet\n" + "\n".join(pending),
            where="convert()",
            hint="Run batches through the model that reach them, or name them in skip_layers.",
        )


def _report(model: nn.Module, selection: Selection) -> dict[str, LayerReport]:
    """Entries by name, in the order of the model."""
    entries = {layer.name: _planned_entry(layer) for layer in selection.planned}
    entries |= {
        layer.name: LayerReport(layer.name, type(layer.module).__name__, "float", layer.reason)
        for layer in selection.left
    }
    return {name: entries[name] for (name, *_), _ in places(model) if name in entries}


def _planned_entry(layer: PlannedLayer) -> LayerReport:
    kind = type(layer.module).__name__
    inputs, weights = layer.config.pair
    formats = f"{inputs or '–'}/{weights}" if weights else ""
    if layer.config.kvcache:
        formats = f"kvcache {layer.config.kvcache['type']}"
    # mxquant has nothing to calibrate: its modules are what they will be.
    calibrates = issubclass(layer.op.quant_op, BaseQuantizeModule)
    action: Action = "calibrating" if calibrates else "converted"
    return LayerReport(layer.name, kind, action, "", layer.algorithm, formats)


def _warnings(selection: Selection, taken: int) -> list[str]:
    """``taken``: layers that an earlier call of ``quantize`` replaced."""
    by_dtype = [layer for layer in selection.left if layer.by_dtype]
    if selection.planned:
        return []
    start = "nothing was quantised"
    if taken:
        start = (
            f"nothing more was quantised; {taken} layer{'s' * (taken > 1)} went through quantize() "
            "before and stay as they are, start from the float model to change that"
        )
    if not selection.left:
        return [f"{start}: the model has no {'other ' * bool(taken)}layer that the algorithm takes"]
    advice = ""
    if by_dtype:
        advice = (
            ". Convert the model first, for example with model.to(torch.bfloat16), or call "
            "quantize(..., any_dtype=True)"
        )
    return [f"{start}: {_reasons(selection.left)}{advice}"]


def _reasons(left: tuple[LeftLayer, ...]) -> str:
    counts = Counter(layer.reason for layer in left)
    return "; ".join(
        f"{reason} ({count} layer{'s' * (count > 1)})" for reason, count in counts.most_common(5)
    )
