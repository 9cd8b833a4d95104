"""``accuracy_based_auto_calibration``: the search, and the files it leaves."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from workbench.engine.errors import WrongState
from workbench.engine.events import CancelToken, OnEvent
from workbench.engine.export.onnx_file import save_onnx
from workbench.engine.export.save import output_paths, save_model
from workbench.engine.files.atomic import ensure_writable, write_text
from workbench.engine.files.config import read_config
from workbench.engine.files.history import write_history, write_ranking
from workbench.engine.files.record import write_record
from workbench.engine.files.sidecar import write_sidecar
from workbench.engine.flows.arguments import check_model, check_onnx_names, check_type
from workbench.engine.flows.ptq import modified_onnx, named_sidecar, resolve_compat
from workbench.engine.graph.capture import capture
from workbench.engine.search.auto_calibration import (
    SearchResult,
    resolve_sensitivity,
    resolve_strategy,
    search_configuration,
)
from workbench.engine.search.evaluator import AutoCalibrationEvaluatorBase
from workbench.engine.search.sensitivity import SensitivityBase
from workbench.engine.search.strategy import AutoCalibrationStrategyBase

RANKING = "accuracy_based_auto_calibration_ranking_information.json"
FINAL_CONFIG = "accuracy_based_auto_calibration_final_config.json"
HISTORY = "amct_log/accuracy_based_auto_calibration_record.json"


def accuracy_based_auto_calibration(
    model: nn.Module,
    model_evaluator: AutoCalibrationEvaluatorBase,
    config_file: str,
    record_file: str,
    save_dir: str,
    input_data: Any,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    dynamic_axes: Mapping[str, Any] | None = None,
    strategy: str | AutoCalibrationStrategyBase = "BinarySearch",
    sensitivity: str | SensitivityBase = "CosineSimilarity",
    *,
    compat: bool | None = None,
    memory_budget_mb: int = 256,
    seed: int = 0,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> None:
    """Leave the most sensitive layers in float until the evaluator is satisfied, and export that.

    ``config_file`` is only read. ``save_dir`` is a prefix: ``out/net`` gives
    ``out/net_deploy_model.onnx`` and its siblings. ``input_data`` is only used for its shapes.
    Beside the models stand the ranking and the final config; the history goes to ``./amct_log``.
    When every layer had to stay float, no model is left and earlier ones of this prefix go.

    Errors: ``TypeError`` for wrong argument types; ``RuntimeError`` for an unknown strategy,
    sensitivity or evaluator, for a missing config and for a DMQ balancer in it; ``ValueError``
    when the original model does not satisfy its own target.

    Source: specification chapter 20.
    """
    function = "accuracy_based_auto_calibration"
    check_model(function, model)
    for argument, value in (
        ("config_file", config_file),
        ("record_file", record_file),
        ("save_dir", save_dir),
    ):
        check_type(function, argument, value, str)
    check_onnx_names(function, input_names, output_names, dynamic_axes)
    resolve_strategy(strategy)
    resolve_sensitivity(sensitivity)
    if not Path(config_file).is_file():
        raise WrongState(f"{config_file} does not exist", where=f"{function}() config_file")
    if not isinstance(model_evaluator, AutoCalibrationEvaluatorBase):
        raise WrongState(
            f"model_evaluator must derive from AutoCalibrationEvaluatorBase, it is "
            f"{type(model_evaluator).__name__}",
            where=f"{function}()",
        )
    captured = capture(model, input_data, on_event=on_event)
    config = read_config(config_file, captured.layers)
    balanced = [n for n in config.enabled() if config.layers[n].dmq_balancer_param is not None]
    if balanced:
        raise WrongState(
            f"layers with a DMQ balancer cannot be searched: {', '.join(balanced)}",
            where=config_file,
            hint="remove dmq_balancer_param, or quantise without a search.",
        )
    prefix = save_dir.rstrip("/")
    folder = Path(prefix).absolute().parent
    for path in (record_file, str(folder / RANKING), HISTORY):
        ensure_writable(path)
    result = search_configuration(
        model,
        captured,
        config,
        model_evaluator,
        strategy=strategy,
        sensitivity=sensitivity,
        compat=resolve_compat(config_file, compat),
        memory_budget_mb=memory_budget_mb,
        seed=seed,
        on_event=on_event,
        cancel=cancel,
    )
    write_ranking(str(folder / RANKING), result.ranking)
    write_history(HISTORY, ((t.quantized, t.satisfied, t.loss) for t in result.trials))
    if result.calibration is None:
        _remove_models(prefix)
        return
    write_text(folder / FINAL_CONFIG, result.config.to_json())
    export_result(result, record_file, prefix, input_names, output_names, dynamic_axes)


def export_result(
    result: SearchResult,
    record_file: str,
    prefix: str,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    dynamic_axes: Mapping[str, Any] | None = None,
) -> None:
    """Write the accepted configuration's record and ONNX files."""
    calibration = result.calibration
    assert calibration is not None
    with tempfile.TemporaryDirectory(prefix="workbench-") as folder:
        modified = str(Path(folder) / "modified.onnx")
        save_onnx(
            modified_onnx(calibration, input_names, output_names, dynamic_axes),
            modified,
            suffix=".external",
        )
        write_record(record_file, calibration.finalize())
        write_sidecar(record_file, named_sidecar(calibration, calibration.captured, input_names))
        save_model(modified, record_file, prefix)


def _remove_models(prefix: str) -> None:
    paths = output_paths(prefix)
    for path in (paths.fake_quant, paths.deploy, paths.qdq):
        path.unlink(missing_ok=True)
