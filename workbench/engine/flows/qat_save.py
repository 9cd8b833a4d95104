"""``save_quant_retrain_model``: a trained model in, the quantised ONNX files out.

Source: specification chapter 30 sections 2.4 and 7, with A1, A5 and A6 of its "Do better".
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import nn

from workbench.engine.errors import WrongState
from workbench.engine.events import CancelToken, OnEvent, check
from workbench.engine.export.float_onnx import to_onnx
from workbench.engine.export.onnx_file import save_onnx
from workbench.engine.export.save import OutputPaths, output_paths, write_quantized
from workbench.engine.files.retrain_config import read_retrain_config
from workbench.engine.files.sidecar import Sidecar
from workbench.engine.flows.arguments import check_model, check_onnx_names, check_path, check_type
from workbench.engine.flows.ptq import mark_data_types
from workbench.engine.flows.qat_insert import remove_quantisers
from workbench.engine.flows.qat_state import (
    QatState,
    is_main_process,
    require_initialised,
    state_of,
    unwrapped,
    wrappers,
)
from workbench.engine.flows.ranges import with_input_names
from workbench.engine.flows.selective import fold_selective_layers
from workbench.engine.flows.weights import all_with_room_for_bias
from workbench.engine.graph.capture import Captured, capture, copy_model
from workbench.engine.graph.folding import FoldPlan, plan_folding
from workbench.engine.graph.sources import input_names as graph_inputs
from workbench.engine.modules.qat.comp_module import Factors

log = logging.getLogger("workbench.engine.flows.qat")

_FUNCTION = "save_quant_retrain_model"


def save_quant_retrain_model(
    config_file: str,
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
    """Write the fake-quant file, the deploy file and, when ranges are known, the QDQ file.

    All factors are computed from the model as it is now, and ``record_file`` is brought up to date
    with them. The third file needs the ranges of tensors, which the model's evaluation in this
    process records. The model, in whatever mode, stays as it is and can be trained on; in a
    distributed run rank 0 writes and the others return at once.

    Errors: ``TypeError`` for a wrong argument type, ``ValueError`` for a path that names no file;
    ``RuntimeError`` for a model that no create or restore function of this process returned, for
    another config than its own, for clip bounds that are not found yet, for an empty record (there
    was no inference), for a model that cannot be captured, and for a bias that overflows int32.

    Source: specification chapter 30 section 2.4.
    """
    check_path(_FUNCTION, "config_file", config_file)
    check_model(_FUNCTION, model)
    check_path(_FUNCTION, "record_file", record_file)
    check_type(_FUNCTION, "save_path", save_path, str)
    check_onnx_names(_FUNCTION, input_names, output_names, dynamic_axes)
    paths = output_paths(save_path)
    trained = unwrapped(_FUNCTION, model)
    state = _checked_state(trained)
    _check_config(state, config_file)
    require_initialised(_FUNCTION, trained, state.config.batch_num)
    if not is_main_process():
        log.info("rank 0 writes the files")
        return
    _check_inference(record_file)
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


def write_trained(
    trained: nn.Module,
    record_file: str,
    paths: OutputPaths,
    input_data: Any,
    input_names: list[str] | None,
    output_names: list[str] | None,
    dynamic_axes: Mapping[str, Any] | None,
    *,
    on_event: OnEvent | None,
    cancel: CancelToken | None,
) -> None:
    """Write the ONNX files of a model whose clip bounds are found, and its record."""
    state = _checked_state(trained)
    plain, factors = plain_model(trained)
    captured = capture(plain, input_data, on_event=on_event)
    check(cancel)
    plan = _fold_plan(captured, state)
    record = state.record(factors, trained)
    weights = {name: found.weight for name, found in factors.items()}
    if not state.compat:
        layers, weights = all_with_room_for_bias(captured, plan, record.layers, weights)
        record = replace(record, layers=layers)
    float_model = to_onnx(
        captured,
        plan,
        weights=weights,
        input_names=input_names,
        output_names=output_names,
        dynamic_axes=dynamic_axes,
    )
    _mark_half(float_model, state)
    ranges = with_input_names(state.ranges(), graph_inputs(captured), input_names)
    with tempfile.TemporaryDirectory(prefix="workbench-qat-") as folder:
        file = Path(folder) / "float.onnx"
        save_onnx(float_model, file)
        del float_model, captured, plain
        write_quantized(
            file,
            record,
            Sidecar(compat=state.compat, ranges=ranges),
            paths,
            source="the model's factors",
            to_get_ranges="are known; run a batch in eval mode first",
            on_event=on_event,
            cancel=cancel,
        )
    state.write(record, record_file)


def plain_model(trained: nn.Module) -> tuple[nn.Module, dict[str, Factors]]:
    """The float model inside a model in training, in eval mode, and every layer's factors.

    A copy that shares the parameters; ``trained`` stays as it is.
    """
    plain = copy_model(trained)
    state = _checked_state(plain)
    factors = {name: layer.factors() for name, layer in wrappers(plain).items()}
    state.detach(plain)
    fold_selective_layers(plain)
    remove_quantisers(plain, state.treatments)
    return plain, factors


def _checked_state(model: nn.Module) -> QatState:
    state = state_of(model)
    if state is None or not wrappers(model):
        where = f"{_FUNCTION}() model"
        hint = "Give the model that create_ or restore_quant_retrain_model returned."
        if wrappers(model):
            raise WrongState("only a part of it is a model in training", where=where, hint=hint)
        raise WrongState(
            "it holds no layer that is trained for quantisation", where=where, hint=hint
        )
    return state


def _check_config(state: QatState, config_file: str) -> None:
    created, given = state.config, read_retrain_config(config_file, state.layers)
    different = [
        key
        for key in ("version", "batch_num", "fakequant_precision_mode")
        if getattr(given, key) != getattr(created, key)
    ]
    different += [n for n, entry in given.layers.items() if created.layers.get(n) != entry]
    different += [n for n in created.enabled() if n not in given.layers]
    if different:
        raise WrongState(
            "it differs from the config that the model was created with: "
            f"{', '.join(different[:10])}",
            where=config_file,
            hint="Give that config, or create the model again with this one.",
        )


def _check_inference(record_file: str) -> None:
    path = Path(record_file)
    if not path.is_file() or not path.stat().st_size:
        raise WrongState(
            "the record is empty: there was no inference yet",
            where=record_file,
            hint="Call model.eval() and run at least one batch.",
        )


def _fold_plan(captured: Captured, state: QatState) -> FoldPlan:
    """Every batch norm goes where it was absorbed, others only into layers that stay float."""
    absorbed = {n: t.norm for n, t in state.treatments.items() if t.norm}
    plan = plan_folding(
        captured, [name for name in state.treatments if name not in absorbed], sync=True
    )
    found = {pair.conv: pair.bn for pair in plan.pairs}
    for name, norm in absorbed.items():
        if found.get(name) != norm:
            reason = plan.kept.get(norm, "the graph has changed")
            raise WrongState(
                f"the batch norm {norm} cannot be folded any more: {reason}",
                where=f"layer {name}",
                hint="Check the model's weights and its forward.",
            )
    return plan


def _mark_half(model: ir.Model, state: QatState) -> None:
    """Float16 layers carry their type; float32 ones nothing, as in the reference (section 7.2)."""
    mark_data_types(model, state.treatments)
    for node in model.graph:
        if node.attributes.get_string("op_data_type", "") == "float":
            del node.attributes["op_data_type"]
