"""Layer-wise distillation: ``create_distill_config`` and ``create_distill_model``.

Source: specification chapter 50. The training, ``distill``, is in ``flows.distill_run``; the last
step of the flow, ``save_distill_model``, in ``flows.distill_save``.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from workbench.engine.events import CancelToken, Notice, OnEvent, check, emit
from workbench.engine.files.atomic import ensure_writable, write_text
from workbench.engine.files.distill_config import EXTENDED_TYPES, read_distill_config
from workbench.engine.files.distill_text import load_distill_text, resolve_distill_text
from workbench.engine.files.problems import raise_problems
from workbench.engine.files.sidecar import Sidecar, read_sidecar, write_sidecar
from workbench.engine.flows.arguments import check_model, check_path, check_type
from workbench.engine.flows.distill_groups import chain_problems, find_groups
from workbench.engine.flows.distill_ranges import StudentRanges
from workbench.engine.flows.distill_student import (
    layers_in_module_order,
    make_student,
    module_types,
    refuse_quantised,
)
from workbench.engine.flows.ptq import resolve_compat
from workbench.engine.flows.qat import wrapped_like
from workbench.engine.flows.qat_state import unwrapped
from workbench.engine.graph.capture import capture
from workbench.engine.graph.folding import plan_folding
from workbench.engine.graph.sources import input_names

log = logging.getLogger("workbench.engine.flows.distill")


def create_distill_config(
    config_file: str,
    model: nn.Module,
    input_data: Any,
    config_defination: str | None = None,
    *,
    extended_types: bool = False,
    compat: bool = False,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> None:
    """Write a JSON config: how each Conv2d and Linear is quantised, and the groups to train.

    ``input_data``: a tuple of example inputs (or one tensor), used for its shapes only.
    ``config_defination``: a text config (``.cfg``); None: all defaults. ``extended_types``: groups
    may hold ReLU6, GELU, SiLU, Hardswish, Hardsigmoid, Identity, Dropout and LayerNorm, too.
    ``compat``: student and training behave as the reference's. The model is not changed.

    Errors: ``TypeError`` for a wrong argument type; ``ValueError`` for an unusable file name, a
    model without a supported layer or group, and what is wrong in the text config
    (``FileNotFoundError`` when it is missing, ``ParseError`` when it is none); ``RuntimeError`` for
    a model that cannot be captured or holds quantisation modules already.

    Source: specification chapter 50 sections 3, 4 and 6.
    """
    function = "create_distill_config"
    check_path(function, "config_file", config_file)
    check_model(function, model)
    if config_defination is not None:
        check_path(function, "config_defination", config_defination)
    check_type(function, "extended_types", extended_types, bool)
    check_type(function, "compat", compat, bool)
    text = None if config_defination is None else load_distill_text(config_defination)
    ensure_writable(config_file)
    inner = unwrapped(function, model)
    refuse_quantised(function, inner)
    captured = capture(inner, input_data, dynamic=False, on_event=on_event)
    check(cancel)
    config = resolve_distill_text(text, layers_in_module_order(captured), source=function)
    groups = find_groups(
        captured,
        group_size=config.group_size,
        given=() if text is None else text.groups(),
        extended_types=extended_types,
        source=function if text is None else text.source,
    )
    for warning in groups.warnings:
        log.warning(warning)
        emit(on_event, Notice(warning))
    config = replace(config, groups=groups.chains)
    write_text(config_file, config.to_json(), warn_if_exists=True)
    options = {EXTENDED_TYPES: True} if extended_types else {}
    write_sidecar(config_file, Sidecar(compat=compat, options=options))


def create_distill_model(
    config_file: str,
    model: nn.Module,
    input_data: Any,
    *,
    compat: bool | None = None,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> nn.Module:
    """The student: a copy of ``model`` in which every enabled layer quantises, in the same mode.

    ``input_data`` as in ``create_distill_config``. A ``DistributedDataParallel`` model comes back
    as one, over the new parameters. The model is not changed.

    Errors: ``FileNotFoundError`` for a missing config; one ``ValueError``/``TypeError`` with all
    that is wrong in it, groups whose modules do not read one another included; ``RuntimeError`` for
    a model that cannot be captured or copied or holds quantisation modules already.

    Source: specification chapter 50 section 7.
    """
    function = "create_distill_model"
    check_type(function, "config_file", config_file, str)
    check_model(function, model)
    inner = unwrapped(function, model)
    refuse_quantised(function, inner)
    read_distill_config(config_file)  # before the model is looked at
    compat = resolve_compat(config_file, compat)
    captured = capture(inner, input_data, dynamic=False, on_event=on_event)
    check(cancel)
    config = read_distill_config(
        config_file, layers_in_module_order(captured), module_types(captured.module)
    )
    extended = read_sidecar(config_file).options.get(EXTENDED_TYPES, False) is True
    problems = chain_problems(captured, config.groups, extended_types=extended)
    raise_problems(problems, source=config_file)
    student = make_student(inner, captured, config, compat=compat)
    norms = {pair.conv: pair.bn for pair in plan_folding(captured, sync=True).pairs}
    shapes = tuple(
        tuple(value.shape)
        for value in (*captured.args, *captured.kwargs.values())
        if isinstance(value, Tensor)
    )
    StudentRanges(captured.taps, input_names(captured), norms, shapes).attach(student)
    return wrapped_like(model, student)
