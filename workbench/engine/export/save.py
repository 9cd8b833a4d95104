"""``save_model``: float ONNX file and record in, the quantised ONNX files out.

Source: chapter 10 sections 3.4 and 13.1, index decisions 8 and 12.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import DecodeError

from workbench.engine.errors import MissingFile, WorkbenchError, WrongState, WrongType, WrongValue
from workbench.engine.events import CancelToken, Notice, OnEvent, emit
from workbench.engine.export.deploy import finish_deploy
from workbench.engine.export.external import remember_external
from workbench.engine.export.fake_quant import expand_fake_quant
from workbench.engine.export.insert import insert_quantization
from workbench.engine.export.plan import QuantizedNode, plan_layers
from workbench.engine.export.qdq import build_qdq, qdq_obstacle
from workbench.engine.export.rnn import expand_recurrent
from workbench.engine.export.staging import write_models
from workbench.engine.files.record import Record, read_record
from workbench.engine.files.sidecar import Sidecar, read_sidecar

log = logging.getLogger("workbench.export")

LONGEST_PREFIX = 241


@dataclass(frozen=True)
class OutputPaths:
    """The files that ``save_model`` writes for one ``save_path``."""

    fake_quant: Path
    deploy: Path
    qdq: Path


def output_paths(save_path: str) -> OutputPaths:
    """``dir/prefix`` to the three file paths; a trailing ``/`` or ``''`` means an empty prefix.

    Raises ``ValueError`` for a prefix longer than 241 characters.
    """
    folder, prefix = os.path.split(save_path)
    if len(prefix) > LONGEST_PREFIX:
        raise WrongValue(
            f"the file prefix has {len(prefix)} characters; at most {LONGEST_PREFIX} are allowed",
            where="save_path",
            hint="Choose a shorter name after the last '/'.",
        )
    base = Path(os.path.realpath(folder or "."))
    start = f"{prefix}_" if prefix else ""
    return OutputPaths(
        base / f"{start}fake_quant_model.onnx",
        base / f"{start}deploy_model.onnx",
        base / f"{start}qdq_model.onnx",
    )


def save_model(
    modfied_onnx_file: str,
    record_file: str,
    save_path: str,
    *,
    compat: bool | None = None,
    bias_before_dequant: bool = False,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> None:
    """Write the fake-quant file, the deploy file and, when ranges are known, the QDQ file.

    ``modfied_onnx_file`` and ``record_file`` are what ``quantize_model`` and calibration wrote. The
    ranges come from the record's sidecar; without them the third file is left out. All files appear
    together or, on any error, none. ``compat`` None means what the sidecar says.

    Raises ``TypeError`` for arguments of a wrong type, ``ValueError`` for a missing ONNX file or
    values out of range, ``FileNotFoundError`` for a missing record, ``RuntimeError`` for a record
    that is incomplete or does not fit the graph, and for a bias that overflows int32.
    """
    for name, argument in (
        ("modfied_onnx_file", modfied_onnx_file),
        ("record_file", record_file),
        ("save_path", save_path),
    ):
        if not isinstance(argument, str):
            raise WrongType(
                f"{name} is a {type(argument).__name__}; allowed: str", where="save_model"
            )
    paths = output_paths(save_path)
    model_file = _existing_onnx(modfied_onnx_file)
    record = _read_record(record_file)
    sidecar = read_sidecar(record_file)
    if compat is not None and compat != sidecar.compat:
        raise WrongValue(
            f"compat={compat} contradicts the calibration, which was run with {sidecar.compat}",
            where="save_model",
            hint="Leave compat out, or calibrate again with the other setting.",
        )
    write_quantized(
        model_file,
        record,
        sidecar,
        paths,
        source=f"record {record_file}",
        to_get_ranges=f"beside {record_file}; calibrate with this version to get them",
        bias_before_dequant=bias_before_dequant,
        on_event=on_event,
        cancel=cancel,
    )


def write_quantized(
    model_file: Path,
    record: Record,
    sidecar: Sidecar,
    paths: OutputPaths,
    *,
    source: str,
    to_get_ranges: str,
    bias_before_dequant: bool = False,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> None:
    """Write the files of a float ONNX file and its record: all of them or, on any error, none.

    ``source`` names the record in errors. ``to_get_ranges`` ends the notice that the third file is
    not written because ``sidecar`` has no ranges. Errors as of ``save_model``.
    """

    def load() -> tuple[ir.Model, list[QuantizedNode]]:
        model = _load_onnx(model_file)
        remember_external(model)
        return model, plan_layers(model, record, source=source)

    jobs = _jobs(load, sidecar, bias_before_dequant=bias_before_dequant)
    targets = {"fake_quant": paths.fake_quant, "deploy": paths.deploy, "qdq": paths.qdq}
    # Every complaint about the files comes here, before anything is written.
    obstacle = qdq_obstacle(*load())
    if not sidecar.ranges:
        obstacle = f"no tensor ranges {to_get_ranges}"
    if obstacle:
        del targets["qdq"]
        message = f"{paths.qdq.name} is not written: {obstacle}"
        log.info(message)
        emit(on_event, Notice(message))
    write_models(
        {target: jobs[key] for key, target in targets.items()}, on_event=on_event, cancel=cancel
    )


def _jobs(
    load: Callable[[], tuple[ir.Model, list[QuantizedNode]]],
    sidecar: Sidecar,
    *,
    bias_before_dequant: bool,
) -> dict[str, tuple[str, Callable[[], ir.Model]]]:
    """How each file is made, from a fresh load each, so that weights are never held twice."""

    def fake_quant() -> ir.Model:
        model, layers = load()
        insert_quantization(model, layers, bias_before_dequant=bias_before_dequant)
        expand_recurrent(model.graph, layers)
        expand_fake_quant(model)
        return model

    def deploy() -> ir.Model:
        model, layers = load()
        insert_quantization(model, layers, bias_before_dequant=bias_before_dequant)
        finish_deploy(model, layers)
        return model

    def qdq() -> ir.Model:
        model, layers = load()
        return build_qdq(model, layers, sidecar)

    return {
        "fake_quant": ("_fakequant.external", fake_quant),
        "deploy": ("_deploy.external", deploy),
        "qdq": ("_qdq.external", qdq),
    }


def _existing_onnx(name: str) -> Path:
    path = Path(os.path.realpath(name))
    if not name or not path.is_file():
        raise WrongValue(
            f"there is no ONNX file {name!r}",
            where="modfied_onnx_file",
            hint="Pass the file that quantize_model wrote.",
        )
    return path


def _load_onnx(path: Path) -> ir.Model:
    try:
        return ir.load(path)
    except DecodeError as error:
        raise WrongValue(
            f"it is not an ONNX file: {error}",
            where=str(path),
            hint="Pass the file that quantize_model wrote.",
        ) from error


def _read_record(name: str) -> Record:
    path = Path(os.path.realpath(name))
    if not name or not path.is_file():
        raise MissingFile(
            f"there is no record file {name!r}",
            where="record_file",
            hint="Pass the file that quantize_model and the calibration wrote.",
        )
    try:
        return read_record(path)
    except RuntimeError:
        raise
    except WorkbenchError as error:
        raise WrongState(str(error), where=str(path)) from error
