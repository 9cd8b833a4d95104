"""Export of a trained network: its ONNX files, measured and compared as any other export."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from workbench.engine.errors import WrongState
from workbench.studio.exporting import (
    check_and_measure,
    export_prefix,
    measure_floats,
    write_float,
)
from workbench.studio.project import not_writable
from workbench.studio.tasks import Run, ensure_open, evaluate_float
from workbench.studio.training import flow_of


def export_trained(run: Run) -> None:
    """The files of the method's last finished training. ``WrongState`` if there is none."""
    method = str(run.args["method"])
    run.report.stages(8)
    ensure_open(run.workspace, run.report)
    project = run.workspace.project
    flow = flow_of(run, method)
    weights = project.weights_of(method)
    if not weights.is_file():
        raise WrongState(
            f"no training with method {method!r} is finished in this project",
            where="export",
            hint=f"Run train(method={method!r}) to its end first.",
        )
    prefix = export_prefix(project, run.args.get("prefix"), method)
    names = run.graph_names()
    run.report.stage("evaluating the float model")
    evaluate_float(run)
    run.report.stage("writing the files")
    model = flow.restore(weights)
    try:
        Path(prefix).parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        floats = flow.save(model, prefix)
        float_path = write_float(run.workspace, prefix, names)
    except OSError as error:
        raise not_writable(Path(prefix).parent, error) from error
    if floats is None:
        result = check_and_measure(
            run.workspace, model, prefix, float_path,
            report=run.report, cancel=run.cancel, method=method,
        )  # fmt: skip
    else:
        result = measure_floats(
            run.workspace, model, {"float": float_path, **floats},
            report=run.report, cancel=run.cancel, method=method,
        )  # fmt: skip
    if hasattr(flow, "checks"):
        result = replace(result, parity=(*result.parity, *flow.checks(model, prefix)))
    project.store.put(exports=json.loads(json.dumps(asdict(result))))
