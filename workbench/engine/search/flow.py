"""``accuracy_based_auto_calibration``: the search, and the files it leaves."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from torch import nn

from workbench.engine.errors import WrongState
from workbench.engine.events import CancelToken, OnEvent
from workbench.engine.export.onnx_file import save_onnx
from workbench.engine.export.save import output_paths, save_model
from workbench.engine.files.atomic import ensure_writable, write_text
from workbench.engine.files.config import QuantConfig, read_config
from workbench.engine.files.history import write_history, write_pareto
from workbench.engine.files.history import write_ranking as write_ranking_file
from workbench.engine.files.record import write_record
from workbench.engine.files.sidecar import read_sidecar, write_sidecar
from workbench.engine.flows.arguments import check_model, check_onnx_names, check_type
from workbench.engine.flows.balancing import balanced_layers
from workbench.engine.flows.layer_data import Batch
from workbench.engine.flows.ptq import modified_onnx, named_sidecar, resolve_compat
from workbench.engine.graph.capture import capture
from workbench.engine.search.auto_calibration import search_configuration
from workbench.engine.search.cache import TrialCache
from workbench.engine.search.costs import OBJECTIVES
from workbench.engine.search.evaluator import AutoCalibrationEvaluatorBase
from workbench.engine.search.judgement import number_of
from workbench.engine.search.judging import ParetoPoint, Trial
from workbench.engine.search.pareto import TRIALS
from workbench.engine.search.result import SearchCancelled, SearchResult
from workbench.engine.search.sensitivity import SensitivityBase
from workbench.engine.search.setup import Pins
from workbench.engine.search.strategies import Strategy, resolve_sensitivity, resolve_strategy

log = logging.getLogger("workbench.engine.search")

RANKING = "accuracy_based_auto_calibration_ranking_information.json"
FINAL_CONFIG = "accuracy_based_auto_calibration_final_config.json"
PARETO_POINTS = "accuracy_based_auto_calibration_pareto.json"
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
    strategy: Strategy = "BinarySearch",
    sensitivity: str | SensitivityBase = "CosineSimilarity",
    *,
    objective: str = "size",
    pareto_trials: int = TRIALS,
    evaluate_backend: str = "torch",
    write_ranking: str = "always",
    dump_inputs: bool = False,
    keep_temp: bool = False,
    project: str | os.PathLike[str] | None = None,
    executor: Any = None,
    pins: Pins | None = None,
    early: bool = True,
    calibration_data: Sequence[Batch] | None = None,
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

    ``strategy``: 'BinarySearch', 'BinarySearchVerified', 'Greedy', 'Recover', 'Pareto' (which
    leaves a file of its points, too) or an object (see ``search.strategies``); ``sensitivity``:
    'CosineSimilarity', 'SQNR', 'MSE', 'EndToEnd' or an object. ``evaluate_backend`` 'onnx'
    evaluates the fake-quant file in ONNX Runtime instead of a torch module. ``write_ranking``
    'needed' skips the ranking when nothing has to be searched.
    ``dump_inputs`` writes each layer's inputs to ``temp…`` beside the models, which goes at the end
    unless ``keep_temp``. ``project``, a folder, keeps every trial: a search that was stopped or
    killed goes on where it was. ``objective``, ``pareto_trials``, ``executor``,
    ``pins``, ``early`` and ``calibration_data``: see ``search_configuration``.
    A cancelled search leaves ranking, history and, when some configuration has passed, its config.

    Errors: ``TypeError`` for wrong argument types; ``RuntimeError`` for an unknown strategy,
    sensitivity or evaluator, for a missing config and with ``compat`` for a DMQ balancer;
    ``ValueError`` when the original model does not satisfy its own target.

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
    resolve_strategy(strategy, objective=objective, pareto_trials=pareto_trials)
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
    compat = resolve_compat(config_file, compat)
    balanced = balanced_layers(config, captured.layers)
    if balanced and compat:
        raise WrongState(
            f"with compat, layers with a DMQ balancer cannot be searched: {', '.join(balanced)}",
            where=config_file,
            hint="remove dmq_balancer_param, or create the config without compat.",
        )
    prefix = save_dir.rstrip("/")
    folder = Path(prefix).absolute().parent
    for path in (record_file, str(folder / RANKING), HISTORY):
        ensure_writable(path)
    temporary = folder / f"temp{datetime.now(timezone(timedelta(hours=8))):%Y%m%d%H%M%S%f}"
    try:
        if dump_inputs:
            temporary.mkdir(parents=True, mode=0o750)
        result = search_configuration(
            model,
            captured,
            config,
            model_evaluator,
            strategy=strategy,
            sensitivity=sensitivity,
            objective=objective,
            pareto_trials=pareto_trials,
            evaluate_backend=evaluate_backend,
            write_ranking=write_ranking,
            cache=None if project is None else TrialCache(project),
            executor=executor,
            pins=pins,
            early=early,
            dump_folder=temporary if dump_inputs else None,
            calibration_data=calibration_data,
            compat=compat,
            memory_budget_mb=memory_budget_mb,
            seed=seed,
            on_event=on_event,
            cancel=cancel,
        )
        _write_reports(folder, result.ranking, result.trials)
        if result.pareto:
            _write_points(folder, result.objective, result.pareto)
        if result.calibration is None:
            _remove_models(prefix)
            return
        temporary.mkdir(parents=True, mode=0o750, exist_ok=True)
        export_result(
            result, record_file, prefix, temporary, input_names, output_names, dynamic_axes
        )
        _write_config(folder, result.config, config_file)
    except SearchCancelled as cancelled:
        if cancelled.trials:
            _write_reports(folder, cancelled.ranking, cancelled.trials)
        if cancelled.pareto:
            _write_points(folder, cancelled.objective, cancelled.pareto)
        if cancelled.config is not None:
            _write_config(folder, cancelled.config, config_file)
        raise
    finally:
        if not keep_temp:
            shutil.rmtree(temporary, ignore_errors=True)


def _write_config(folder: Path, config: QuantConfig, config_file: str) -> None:
    """The answer, with the options that the user's own config was created with."""
    write_text(folder / FINAL_CONFIG, config.to_json())
    write_sidecar(folder / FINAL_CONFIG, read_sidecar(config_file))


def _write_reports(folder: Path, ranking: Mapping[str, float], trials: Sequence[Trial]) -> None:
    if ranking:
        write_ranking_file(str(folder / RANKING), ranking)
    write_history(HISTORY, ((t.quantized, t.satisfied, t.loss) for t in trials))


def _write_points(folder: Path, objective: str, points: Sequence[ParetoPoint]) -> None:
    entries = [
        {
            "layers": {
                name: (choice.variant or "quantized") if choice.quantize else "float"
                for name, choice in point.choices.items()
            },
            "metric": number_of(point.metric),
            "loss": point.loss,
            "cost": point.cost,
            "measured": point.measured,
            "satisfied": point.satisfied,
            "on_front": point.on_front,
        }
        for point in points
    ]
    write_pareto(str(folder / PARETO_POINTS), objective, OBJECTIVES[objective], entries)


def export_result(
    result: SearchResult,
    record_file: str,
    prefix: str,
    folder: Path,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    dynamic_axes: Mapping[str, Any] | None = None,
) -> None:
    """Write the accepted configuration's record and ONNX files, by way of ``folder``."""
    calibration = result.calibration
    assert calibration is not None
    modified = str(folder / "modified_model.onnx")
    save_onnx(
        modified_onnx(calibration, input_names, output_names, dynamic_axes),
        modified,
        suffix=".external",
    )
    write_record(record_file, calibration.finalize())
    write_sidecar(record_file, named_sidecar(calibration, calibration.captured, input_names))
    save_model(modified, record_file, prefix)
    log.info("models: %s; record: %s", Path(prefix).absolute().parent, record_file)


def _remove_models(prefix: str) -> None:
    paths = output_paths(prefix)
    for path in (paths.fake_quant, paths.deploy, paths.qdq):
        path.unlink(missing_ok=True)
