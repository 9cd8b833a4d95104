"""``save_distill_model``: a distilled student in, the quantised ONNX files and the record out.

Source: specification chapter 50 section 10, D10, D11 and D19.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.algorithms.weight_training import fake_quantize_blocks
from workbench.engine.errors import WrongState
from workbench.engine.events import CancelToken, OnEvent, check
from workbench.engine.export.float_onnx import to_onnx
from workbench.engine.export.onnx_file import save_onnx
from workbench.engine.export.save import output_paths, write_quantized
from workbench.engine.files.atomic import ensure_writable
from workbench.engine.files.record import LayerRecord, Record, write_record
from workbench.engine.files.sidecar import Sidecar, write_sidecar
from workbench.engine.flows.arguments import check_model, check_onnx_names, check_path, check_type
from workbench.engine.flows.distill_ranges import ranges_of
from workbench.engine.flows.distill_student import make_float, student_layers
from workbench.engine.flows.ptq import mark_data_types
from workbench.engine.flows.qat_state import is_main_process, unwrapped
from workbench.engine.flows.ranges import with_input_names
from workbench.engine.flows.weights import all_with_room_for_bias
from workbench.engine.graph.capture import Captured, capture
from workbench.engine.graph.folding import FoldPlan, plan_folding
from workbench.engine.graph.sources import input_names as graph_inputs
from workbench.engine.modules.qat.convolutions import Conv2dQAT
from workbench.engine.modules.qat.linear import LinearQAT
from workbench.engine.numerics.integer import SMALLEST_NORMAL

DEFAULT_RECORD = "amct_log/scale_offset_record.txt"
"""Where the reference's users look for the record, under the working directory."""

_FUNCTION = "save_distill_model"


def save_distill_model(
    model: nn.Module,
    save_path: str,
    input_data: Any,
    record_file: str | None = None,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    dynamic_axes: Mapping[str, Any] | None = None,
    *,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> None:
    """Write ``{prefix}_fake_quant_model.onnx``, ``{prefix}_deploy_model.onnx`` and the record.

    A student that was distilled in this process gets ``{prefix}_qdq_model.onnx``, too. All factors
    are computed from the student as it is now; it is not changed. ``record_file`` None:
    ``amct_log/scale_offset_record.txt`` under the working directory. Batch norms are folded into
    the convolutions before them. In a distributed run rank 0 writes.

    Errors: ``TypeError`` for a wrong argument type; ``ValueError`` for a path that names no file
    and a prefix of more than 241 characters; ``RuntimeError`` for a model without quantised layers,
    layers whose ranges are not found yet, malformed names or axes, and a model that cannot be
    captured; ``Cancelled``.

    Source: specification chapter 50 section 10.
    """
    check_model(_FUNCTION, model)
    check_type(_FUNCTION, "save_path", save_path, str)
    record_file = DEFAULT_RECORD if record_file is None else record_file
    check_path(_FUNCTION, "record_file", record_file)
    check_onnx_names(_FUNCTION, input_names, output_names, dynamic_axes)
    paths = output_paths(save_path)
    student = unwrapped(_FUNCTION, model)
    layers = student_layers(student)
    _check_layers(layers)
    if not is_main_process():
        return
    ensure_writable(record_file)
    captured = capture(make_float(student).eval(), input_data, on_event=on_event)
    check(cancel)
    plan = plan_folding(captured, sync=True)
    found = _all_factors(layers, captured, plan)
    records, weights = all_with_room_for_bias(
        captured,
        plan,
        {name: factors.record for name, factors in found.items()},
        {name: factors.weight for name, factors in found.items()},
    )
    float_model = to_onnx(
        captured,
        plan,
        weights=weights,
        input_names=input_names,
        output_names=output_names,
        dynamic_axes=dynamic_axes,
    )
    mark_data_types(float_model, found)
    record = Record(layers=records)
    known = ranges_of(student)
    found_ranges = {} if known is None else known.found
    sidecar = Sidecar(ranges=with_input_names(found_ranges, graph_inputs(captured), input_names))
    with tempfile.TemporaryDirectory(prefix="workbench-distill-") as folder:
        file = Path(folder) / "float.onnx"
        save_onnx(float_model, file)
        del float_model
        write_quantized(
            file,
            record,
            sidecar,
            paths,
            source="the student's factors",
            to_get_ranges="are known; distil the student in this process first",
            on_event=on_event,
            cancel=cancel,
        )
    write_record(record_file, record, warn_if_exists=True)
    write_sidecar(record_file, sidecar)


@dataclass(frozen=True)
class _Factors:
    """A layer's record, and its weight on the grid of it; both with the batch norm folded in."""

    record: LayerRecord
    weight: Tensor


def _check_layers(layers: Mapping[str, Conv2dQAT | LinearQAT]) -> None:
    if not layers:
        raise WrongState(
            "the model has no quantised layer (Conv2dQAT or LinearQAT)",
            where=f"{_FUNCTION}()",
            hint="Give the model that create_distill_model returned.",
        )
    waiting = [name for name, layer in layers.items() if not layer.initialised("acts_")]
    if waiting:
        raise WrongState(
            f"the activation ranges of these layers are not found yet: {', '.join(waiting)}",
            where=f"{_FUNCTION}()",
            hint="Run distill() first, or the model on batch_num batches.",
        )


@torch.no_grad()
def _all_factors(
    layers: Mapping[str, Conv2dQAT | LinearQAT], captured: Captured, plan: FoldPlan
) -> dict[str, _Factors]:
    """The factors of every quantised layer, in order of execution."""
    norms = {pair.conv: captured.module.get_submodule(pair.bn) for pair in plan.pairs}
    order = sorted(layers, key=lambda name: captured.layers[name].order)
    # On the captured copy bfloat16 weights are float32.
    return {
        name: _factors(
            layers[name],
            captured.module.get_submodule(name).get_parameter("weight").dtype,
            norms.get(name),
        )
        for name in order
    }


def _factors(layer: Conv2dQAT | LinearQAT, dtype: torch.dtype, norm: nn.Module | None) -> _Factors:
    scale_d, offset_d = (float(value) for value in layer.activation_factors("acts_"))
    weight = layer.get_parameter("weight").detach()
    settings = layer.weight_settings("wts_")
    scales = layer.weight_factors("wts_", weight)
    fake = fake_quantize_blocks(weight, scales, settings.bits, settings.channel_axis)
    if norm is not None:
        gain = norm.get_parameter("weight").double()
        gain = gain / torch.sqrt(norm.get_buffer("running_var").double() + norm.eps)  # type: ignore[operator]
        fake = (fake.double() * gain.reshape(-1, *[1] * (fake.dim() - 1))).float()
        scales = (scales.double() * gain.abs()).float()
        scales = scales.masked_fill(scales < SMALLEST_NORMAL, 1.0)
    record = LayerRecord(
        scale_d=scale_d,
        offset_d=int(offset_d),
        scale_w=tuple(scales.tolist()),
        offset_w=(0,) * scales.numel(),
        act_type=f"INT{layer.activation_settings('acts_').bits}",
        wts_type=f"INT{settings.bits}",
    )
    return _Factors(record, fake.to(dtype))
