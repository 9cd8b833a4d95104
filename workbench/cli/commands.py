"""The commands over projects: each one is a call of the session that a script could make."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workbench.cli.command import Command, Option, Result
from workbench.cli.shrinking import SHRINKING
from workbench.cli.variants import VARIANTS
from workbench.engine.errors import Cancelled, WorkbenchError, WrongState, WrongValue
from workbench.studio.errors import JobActive, JobFailed
from workbench.studio.kept_weights import path_of
from workbench.studio.training_state import METHODS, PLAIN, SPARSITIES

if TYPE_CHECKING:
    from workbench.studio.session import Session

DONE, FAILED, WRONG, MISSED, BUSY, INTERRUPTED = 0, 1, 2, 3, 4, 130


def run_all(given: argparse.Namespace) -> int:
    """One project after the other; the exit code of the first that did not end well."""
    if given.folder is not None and len(given.project) > 1:
        message = f"--project is one folder for {len(given.project)} models. Give one at a time."
        return _say(given, " ".join(given.project), message, WRONG)
    worst = DONE
    for project in given.project:
        code = _run(project, given)
        if code == INTERRUPTED:
            return code
        worst = worst or code
    return worst


def _run(source: str, given: argparse.Namespace) -> int:
    command = COMMANDS[given.command]
    session: Session | None = None
    try:
        # Here, as loading torch takes long enough to be interrupted.
        from workbench.cli.progress import Terminal
        from workbench.studio import open_session

        session = open_session(
            _source(source, given),
            _data(given),
            given.metric,
            given.folder,
            train=given.train_data,
        )
        with Terminal(session, given.command, silent=given.json):
            command.act(session, given)
        found = {"project": str(session.project.folder), "command": given.command}
        found |= command.result(session, given)
    except KeyboardInterrupt:
        return _say(given, source, "interrupted; what was finished is kept", INTERRUPTED)
    except Cancelled as error:
        return _say(given, source, str(error), INTERRUPTED)
    except JobActive as error:
        return _say(given, source, str(error), BUSY)
    except JobFailed as error:
        return _say(given, source, str(error), WRONG if error.wrong else FAILED)
    except (WorkbenchError, OSError) as error:
        return _say(given, source, str(error), WRONG)
    finally:
        if session is not None:
            session.dispose()
    words = command.words or _words
    print(json.dumps(_plain(found)) if given.json else words(found))
    return DONE if found["ok"] else MISSED


def _source(name: str, given: argparse.Namespace) -> Any:
    """A project, file or name; a factory with what it is called with."""
    if not given.arguments and not given.weights:
        return name
    from workbench.studio import Factory
    from workbench.studio.factory import read_arguments

    return Factory(name, read_arguments(given.arguments), given.weights)


def _data(given: argparse.Namespace) -> Any:
    """``--data``: a path, or a folder of pictures with how they are to be read."""
    settings: dict[str, Any] = {
        name: value
        for name, value in (
            ("resize", given.resize),
            ("crop", given.crop),
            ("mean", _numbers(given.mean, "--mean")),
            ("std", _numbers(given.std, "--std")),
        )
        if value not in (0, None)
    }
    if not settings:
        return given.data
    if given.data is None:
        raise WrongValue(
            "there is no folder of pictures they are for",
            where=", ".join(f"--{name}" for name in settings),
            hint="Name it with --data.",
        )
    from workbench.studio import ImageFolder

    return ImageFolder(given.data, **settings)


def _numbers(text: str | None, where: str) -> list[float] | None:
    if text is None:
        return None
    if text.strip().lower() == "none":
        return []
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise WrongValue(
            f"{text!r} is no list of numbers", where=where, hint="Write 0.485,0.456,0.406 or none."
        ) from error


def _say(given: argparse.Namespace, source: str, message: str, code: int) -> int:
    if given.json:
        print(json.dumps({"project": source, "command": given.command, "error": message}))
    else:
        print(f"{source}: {message}", file=sys.stderr)
    return code


def _summary(session: Session) -> Result:
    summary = session.summary
    return {
        "ok": True,
        "metric": summary.metric_name,
        "float": summary.metric_float,
        "now": summary.metric_current,
        "predicted": summary.metric_is_prediction,
        "bytes_float": summary.size_float,
        "bytes": summary.size_current,
        "bit_operations_float": summary.bops_float,
        "bit_operations": summary.bops_current,
        "quantised": summary.quantized,
        "layers": summary.eligible,
        "notices": list(summary.notices),
    }


def _analysed(session: Session) -> Result:
    table = session.layers.dropna(subset=["cosine"]).sort_values("cosine").head(10)
    worst = table[["name", "cosine", "sqnr"]].to_dict("records")
    return _summary(session) | {"worst": worst}


def _calibrated(session: Session) -> Result:
    project = session.project
    files = {"config": str(project.config_path), "record": str(project.record_path)}
    return _summary(session) | files


def _searched(session: Session) -> Result:
    job = session.job
    trials = session.trials
    own = trials[trials["job"] == job.id] if job is not None else trials
    # There is no further trial where everything quantised was good enough.
    last = own[own["kind"].isin(("all", "final"))].tail(1)
    satisfied = bool(len(last)) and bool(last["satisfied"].iloc[0])
    table = session.layers
    floats = table[table["eligible"] & ~table["quant_enable"]]["name"].tolist()
    return _calibrated(session) | {"ok": satisfied, "float_layers": floats, "trials": len(own)}


def _trained(session: Session) -> Result:
    training = session.training
    if training is None:  # its weights have become the project's
        last = session.weights[-1]
        path = str(path_of(session.project, last))
        return _summary(session) | {"method": last.method, "trained": last.metric, "weights": path}
    return _summary(session) | {
        "method": training.method,
        "trained": training.metric,
        "layers_trained": training.layers,
        "steps": training.steps,
        "checkpoints": [row.name for row in training.checkpoints],
    }


def _exported(session: Session) -> Result:
    exported = session.exports
    files = [
        {
            "kind": file.kind,
            "path": file.path,
            "bytes": file.bytes,
            "metric": file.metric,
            "latency_ms": file.latency_ms,
        }
        for file in exported.files
    ]
    agree = [{"text": line.text, "ok": line.ok} for line in exported.parity]
    return _summary(session) | {
        "ok": all(line.ok for line in exported.parity),
        "files": files,
        "parity": agree,
    }


def _report(session: Session, given: argparse.Namespace) -> None:
    session.report(given.output)


def _reported(session: Session, given: argparse.Namespace) -> Result:
    from workbench.studio.report import report_path

    return _summary(session) | {"report": str(report_path(session, given.output))}


def _words(found: Result) -> str:
    """The result for a person: a figure a line, lists indented."""
    from workbench.charts import formats

    metric = found["metric"]
    about = "≈ " if found["predicted"] else ""
    lines = [found["project"]]
    if found["float"] == found["float"] or found["now"] == found["now"]:  # else nothing is measured
        lines.append(
            f"  {formats.metric_title(metric) or 'metric'}: "
            f"{formats.metric(found['float'], metric)} → "
            f"{about}{formats.metric(found['now'], metric)}"
        )
    lines += [
        f"  size: {formats.size(found['bytes_float'])} → {formats.size(found['bytes'])}",
        f"  bit-operations: {formats.bit_operations(found['bit_operations_float'])} → "
        f"{formats.bit_operations(found['bit_operations'])}",
        f"  quantised: {found['quantised']} of {found['layers']} layers",
    ]
    lines += [f"    1 − cos {1 - r['cosine']:.1e}  {r['name']}" for r in found.get("worst", ())]
    if "float_layers" in found:
        verdict = "met" if found["ok"] else "missed"
        left = ", ".join(found["float_layers"]) or "none"
        lines.append(f"  target {verdict} after {found['trials']} trials; left in float: {left}")
    if "trained" in found:
        how = [found["method"]]
        if "steps" in found:
            how += [f"{found['layers_trained']} layers", f"{found['steps']} steps"]
        lines.append(f"  trained ({', '.join(how)}): {formats.metric(found['trained'], metric)}")
    if "weights" in found:
        lines.append(f"  weights: {found['weights']}")
    if "report" in found:
        lines.append(f"  report: {found['report']}")
    if "record" in found:
        lines.append(f"  record: {found['record']}")
    for file in found.get("files", ()):
        value = formats.metric(file["metric"], metric) if file["metric"] is not None else ""
        lines.append(f"  {file['path']}  {formats.size(file['bytes'])}  {value}".rstrip())
    lines += [f"  {'✓' if line['ok'] else '✗'} {line['text']}" for line in found.get("parity", ())]
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    """JSON has no NaN: what is not known is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _train(session: Session, given: argparse.Namespace) -> None:
    last = session.training
    method = last.method if given.resume and last is not None else given.method
    if given.use and method not in PLAIN:
        raise WrongValue(
            f"--use does not go with --method {method}",
            where="train",
            hint=f"It goes with {' and '.join(PLAIN)}, which leave other weights only.",
        )
    if given.resume:
        session.resume_training()
    else:
        session.train(
            given.method,
            epochs=given.epochs,
            learning_rate=given.learning_rate,
            samples=given.samples,
            seed=given.seed,
            sparsity=given.sparsity,
            update_freq=given.update_freq,
            prune_ratio=given.prune_ratio,
            quantise=False if given.no_quantise else None,
        )
    if given.use:
        session.use_weights()


def _export(session: Session, given: argparse.Namespace) -> None:
    method = "ptq"
    if given.trained:
        if session.training is None:
            raise WrongState(
                "no training is finished in this project",
                where="export",
                hint="Run workbench train first.",
            )
        method = session.training.method
    inputs, outputs, batch = given.input_names, given.output_names, given.batch_axis
    if inputs or outputs or batch:
        session.name_graph(inputs or (), outputs or (), batch or "")
    session.export(given.prefix, method=method)


def _search(session: Session, given: argparse.Namespace) -> None:
    session.auto_calibrate(
        max_loss=given.max_loss,
        strategy=given.strategy,
        sensitivity=given.sensitivity,
        objective=given.objective,
        pareto_trials=given.trials,
    )


COMMANDS: Mapping[str, Command] = {
    "analyse": Command(
        "measure what quantising does to every layer",
        lambda session, _: session.analyse(),
        lambda session, _: _analysed(session),
    ),
    "calibrate": Command(
        "calibrate and evaluate the configuration as it is, and write its record",
        lambda session, _: session.evaluate(),
        lambda session, _: _calibrated(session),
    ),
    "auto-calibrate": Command(
        "find the fewest layers to leave in float so that a target holds",
        _search,
        lambda session, _: _searched(session),
        (
            Option(
                "--max-loss",
                {
                    "type": float,
                    "default": 0.005,
                    "help": "of the metric, absolute (0.005 = 0.5 points)",
                },
            ),
            Option(
                "--strategy",
                {
                    "default": "Recover",
                    "choices": [
                        "Recover",
                        "BinarySearch",
                        "BinarySearchVerified",
                        "Greedy",
                        "Pareto",
                    ],
                },
            ),
            Option(
                "--sensitivity",
                {
                    "default": "CosineSimilarity",
                    "choices": ["CosineSimilarity", "SQNR", "MSE", "EndToEnd"],
                },
            ),
            Option(
                "--objective",
                {"default": "size", "choices": ["size", "bops", "latency"], "help": "of Pareto"},
            ),
            Option(
                "--trials", {"type": int, "default": 60, "help": "configurations Pareto looks at"}
            ),
        ),
    ),
    **SHRINKING,
    **VARIANTS,
    "train": Command(
        "train: with quantisation in the loop, distilling, fine-tuning, 2:4 sparse or combined",
        _train,
        lambda session, _: _trained(session),
        (
            Option("--method", {"default": METHODS[0], "choices": list(METHODS)}),
            Option("--epochs", {"type": int, "default": 2}),
            Option("--learning-rate", {"type": float, "default": None}),
            Option("--samples", {"type": int, "default": None, "help": "about so many an epoch"}),
            Option("--seed", {"type": int, "default": 0}),
            Option(
                "--sparsity", {"choices": list(SPARSITIES), "help": "of compressed (default 2:4)"}
            ),
            Option(
                "--update-freq",
                {"type": int, "help": "steps between two choices of 2:4 masks (default: once)"},
            ),
            Option(
                "--prune-ratio",
                {"type": float, "help": "of the channels, with --sparsity channels (default 0.2)"},
            ),
            Option(
                "--no-quantise", {"action": "store_true", "help": "compressed without quantisers"}
            ),
            Option(
                "--use",
                {
                    "action": "store_true",
                    "help": "make the trained weights the project's own (finetune, sparse)",
                },
            ),
            Option(
                "--resume",
                {"action": "store_true", "help": "go on from the last checkpoint instead"},
            ),
        ),
    ),
    "export": Command(
        "write the ONNX files, measure them and check that they agree",
        _export,
        lambda session, _: _exported(session),
        (
            Option(
                "--trained", {"action": "store_true", "help": "the network of the last training"}
            ),
            Option(
                "--prefix",
                {"help": "folder and beginning of the file names (default: in the project)"},
            ),
            Option("--input-names", {"nargs": "+", "help": "what the files call the inputs"}),
            Option("--output-names", {"nargs": "+", "help": "what the files call the outputs"}),
            Option("--batch-axis", {"help": "name of the dimension that may vary"}),
        ),
    ),
    "report": Command(
        "write what is known of the project as one HTML page that opens without a net",
        _report,
        _reported,
        (
            Option(
                "--output",
                {"help": "the file (default: exports/NAME_report.html in the project)"},
            ),
        ),
    ),
}
