"""``quantize_preprocess``: the step before ``quantize_model`` for layers with a DMQ balancer.

Source: specification chapter 10 sections 3.2 and 10.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from workbench.engine.errors import MissingFile, WrongValue
from workbench.engine.events import CancelToken, OnEvent
from workbench.engine.files.atomic import ensure_writable, write_text
from workbench.engine.files.config import read_config
from workbench.engine.files.record import Record, write_record
from workbench.engine.flows.arguments import check_model, check_path, check_type
from workbench.engine.flows.balancing import Balancing
from workbench.engine.flows.ptq import resolve_compat
from workbench.engine.graph.capture import capture


def quantize_preprocess(
    config_file: str,
    record_file: str,
    model: nn.Module,
    input_data: Any,
    *,
    compat: bool | None = None,
    batches: int = 1,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> nn.Module:
    """Return a copy of the model that writes the balance factors to ``record_file`` when it runs.

    Run it once on calibration data, then call ``quantize_model`` with the same files. The record
    is emptied now and written when every layer with a ``dmq_balancer_param`` has seen ``batches``
    batches; more change nothing. The copy is in float and computes what ``model`` does;
    ``model.balancing`` tells ``is_done`` and ``missing()``.

    Errors: ``ValueError`` for a file name that is empty, ends in a slash or is longer than 254
    characters, for what is wrong in the config and for ``batches < 1``; ``FileNotFoundError`` for a
    missing config; ``RuntimeError`` when no enabled layer has a ``dmq_balancer_param`` or the model
    cannot be captured.

    Source: specification chapter 10 section 3.2.
    """
    function = "quantize_preprocess"
    for argument, path in (("config_file", config_file), ("record_file", record_file)):
        check_path(function, argument, path)
    check_model(function, model)
    check_type(function, "batches", batches, int)
    if batches < 1:
        raise WrongValue(f"batches is {batches}; allowed: 1 or more", where=f"{function}()")
    if not Path(config_file).is_file():
        raise MissingFile(f"{config_file} does not exist", where=f"{function}() config_file")
    ensure_writable(record_file)
    captured = capture(model, input_data, on_event=on_event)
    config = read_config(config_file, captured.layers)
    resolve_compat(config_file, compat)

    def finished(record: Record) -> None:
        write_record(record_file, record)

    balancing = Balancing(
        captured, config, batches=batches, on_finished=finished, on_event=on_event, cancel=cancel
    )
    write_text(record_file, "", warn_if_exists=True)
    return balancing.model
