"""Capture a model once: its copy, its exported graph, its layers (index decision 9)."""

from __future__ import annotations

import re
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils import _pytree as pytree

from workbench.engine.errors import CaptureError, WrongState
from workbench.engine.events import Notice, OnEvent, Progress, emit
from workbench.engine.graph.batch_axes import batch_layouts, repeat_to_two
from workbench.engine.graph.copying import cast_to_float32, copy_model
from workbench.engine.graph.eligibility import check_module, check_weights, family, find_layers
from workbench.engine.graph.inputs import (
    inputs_to_float32,
    own_tensors,
    split_inputs,
    to_float32_hook,
)
from workbench.engine.graph.layers import LAYER_TYPES, LayerInfo
from workbench.engine.graph.program import (
    LAYER_MARK,
    TAP_MARK,
    ProgramFacts,
    mark,
    read_program,
)
from workbench.engine.graph.quiet import quiet
from workbench.engine.graph.taps import Tap, find_taps

__all__ = ["Captured", "Tap", "capture", "copy_model"]

_REMAINING = (
    "Flows that work on the module tree alone remain: quantize()/convert(), single-operator "
    "quantisation-aware training (Conv2dQAT, …), and KV-cache calibration."
)


@dataclass
class Captured:
    """A model as the engine sees it.

    ``module``: the engine's own copy, in eval mode, sharing the user's parameters. ``program``: the
    exported graph of that copy. ``layers``: every layer in execution order, those that stay in
    float with their reason. ``dynamic_batch``: whether dimension 0 of the inputs may vary.
    ``training_paths``: modules found in training mode inside a model in eval mode.
    """

    module: nn.Module
    program: ExportedProgram
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    layers: dict[str, LayerInfo]
    taps: tuple[Tap, ...]
    dynamic_batch: bool
    notices: tuple[str, ...]
    facts: ProgramFacts = field(repr=False)
    training_paths: frozenset[str] = frozenset()


def capture(
    model: nn.Module,
    input_data: object,
    *,
    dynamic: bool = True,
    on_event: OnEvent | None = None,
) -> Captured:
    """Export a copy of ``model`` and find its layers; the user's model is not touched.

    ``input_data``: a tuple of positional inputs (a dict at its end holds keyword arguments) or one
    tensor; only shapes and types of it are used. Dimension 0 is captured dynamic when the model
    allows it. Raises ``WrongState`` for a list, a bare layer, a model that holds compression
    modules, and weights with inf or NaN or none; ``WrongType`` for TorchScript and unsupported data
    types; ``CaptureError`` when the model cannot be exported (chapter 10 sections 3 and 6).
    """
    args, kwargs = split_inputs(input_data)
    check_module(model)
    _refuse(model)
    emit(on_event, Progress("Capturing the model's graph", 0, 1))
    notices: list[str] = []
    copied = copy_model(model)
    if model.training:
        notices.append("The model was in training mode; it is captured in eval mode.")
    cast = cast_to_float32(copied)
    if cast:
        args, kwargs = inputs_to_float32(args, kwargs)
        copied.register_forward_pre_hook(to_float32_hook, with_kwargs=True)
        more = f" and {len(cast) - 1} more" if len(cast) > 1 else ""
        notices.append(f"{cast[0]}{more} converted to float32 on the engine's copy.")
    check_weights(copied)

    program, dynamic, refusal = _export(copied, args, kwargs, dynamic)
    if refusal:
        notices.append(
            f"The batch size is fixed at {batch_layouts(copied, args, kwargs)[0].batch}: the model "
            f"refuses a dynamic one ({refusal})."
        )
    facts = read_program(copied, program)
    batch = _example_batch(copied, program)
    layers, nodes = find_layers(copied, facts, batch)
    taps = find_taps(facts)
    for path, node in nodes.items():
        mark(node, LAYER_MARK + path)
    for node, tap in taps.items():
        mark(node, TAP_MARK + tap.key)
    for notice in notices:
        emit(on_event, Notice(notice))
    emit(on_event, Progress("Capturing the model's graph", 1, 1))
    training = () if model.training else (p for p, m in model.named_modules() if m.training)
    return Captured(
        module=copied,
        program=program,
        args=args,
        kwargs=kwargs,
        layers=layers,
        taps=tuple(taps.values()),
        dynamic_batch=dynamic,
        notices=tuple(notices),
        facts=facts,
        training_paths=frozenset(training),
    )


def _refuse(model: nn.Module) -> None:
    wrapped = [
        path or type(model).__name__
        for path, module in model.named_modules()
        if getattr(module, "workbench_wrapper", False)
    ]
    if wrapped:
        raise WrongState(
            f"the model already contains compression modules: {', '.join(wrapped)}.",
            hint="Give the original float model; of one with 2:4 masks, fold_sparsity(model).",
        )
    if family(model) in LAYER_TYPES:
        raise WrongState(
            f"the model itself is a bare {type(model).__name__}, so the layer has no name.",
            hint="Wrap it: torch.nn.Sequential(layer).",
        )


def _export(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: bool
) -> tuple[ExportedProgram, bool, str]:
    """The exported program, whether its batch is dynamic, and why not if it was refused."""
    layouts = batch_layouts(module, args, kwargs)
    refusals = []
    with quiet(), torch.no_grad():
        for layout in layouts:
            # Export leaves marks on the tensors it makes dynamic: give it its own.
            single = layout.batch == 1
            many = repeat_to_two(layout, args, kwargs) if single else own_tensors(args, kwargs)
            shapes = ShapesCollection()  # type: ignore[no-untyped-call]
            leaves = zip(*map(pytree.tree_leaves, ((args, kwargs), many)), strict=True)
            for given, leaf in leaves:
                axis = layout.axis(given)
                if axis is not None:
                    shapes[leaf] = {axis: Dim.DYNAMIC}
            try:
                program = torch.export.export(
                    module,
                    many[0],
                    many[1],
                    dynamic_shapes=shapes.dynamic_shapes(module, many[0], many[1])  # type: ignore[no-untyped-call]
                    if dynamic
                    else None,
                    strict=False,
                )
                if not dynamic:
                    return program, False, ""
                refusals.append(_narrowed(program))
                if not refusals[-1]:
                    return program, True, ""
            except Exception as error:
                refusals.append(_first_line(error))
        refusal = refusals[0] if refusals else ""
        try:
            own = own_tensors(args, kwargs)
            return torch.export.export(module, *own, strict=False), False, refusal
        except Exception as error:
            raise _capture_error(module, error) from error


def _narrowed(program: ExportedProgram) -> str:
    """Why a dynamic batch holds for some sizes only; '' when any size will do.

    A model that branches on its batch size would run wrongly, silently, outside the branch taken.
    """
    for allowed in program.range_constraints.values():
        if int(allowed.lower) > 2 or allowed.upper < sys.maxsize:
            return f"it treats batch sizes outside {allowed.lower} to {allowed.upper} differently"
    return ""


def _example_batch(module: nn.Module, program: ExportedProgram) -> int:
    layouts = batch_layouts(module, *program.example_inputs) if program.example_inputs else []
    return layouts[0].batch if layouts else 1


def _capture_error(module: nn.Module, error: Exception) -> CaptureError:
    own = Path(torch.__file__).parent
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if own not in Path(frame.filename).parents and "workbench" not in Path(frame.filename).parts
    ]
    text = str(error)
    line = re.search(r'File "([^"]+)", line (\d+), in (\w+)', text)
    where = type(module).__name__
    at = ""
    if frames and frames[-1].filename != "<string>":
        at = f" at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})"
    elif line:
        at = f" at {line[1]}:{line[2]}"
    operator = re.search(r"\b(?:torch\.ops\.)?(aten\.[\w.]+|torch\.[\w.]+\([^)]*\))", text)
    named = f" Operator: {operator[1]}." if operator else ""
    return CaptureError(
        f"the model cannot be captured as a graph: {type(error).__name__}: "
        f"{_first_line(error)}{at}.{named}",
        where=where,
        hint=_REMAINING,
    )


def _first_line(error: Exception) -> str:
    for line in str(error).splitlines():
        if line.strip():
            return line.strip().rstrip(".")
    return type(error).__name__
