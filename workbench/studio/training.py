"""The training job: a model with quantisers, a training, its record, weights and metric."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from workbench.engine.errors import WrongState, WrongType, WrongValue
from workbench.engine.events import Notice, TrainStep
from workbench.engine.files.atomic import replace_on_success
from workbench.engine.flows.training import TrainingResult, fit
from workbench.engine.flows.training_checkpoint import remove_checkpoints
from workbench.engine.flows.training_recipe import soft_cross_entropy
from workbench.engine.flows.training_settings import TrainingSettings
from workbench.engine.graph.capture import copy_model
from workbench.studio.code import load_object
from workbench.studio.masks import masks_file
from workbench.studio.sources import base_model
from workbench.studio.tasks import (
    Run,
    ensure_open,
    evaluate_float,
    left_float,
    require_eligible,
)
from workbench.studio.training_data import TrainingData, keep_notices, training_data
from workbench.studio.training_script import columns_hash
from workbench.studio.training_state import COMPRESSING, KEY, QUANTISING, groups_file

LOSSES = ("auto", "cross_entropy", "mse", "float")


class Flow(Protocol):
    """What the job asks of a method of training.

    Some also have ``train``, a loop of their own; ``facts``, what the model shows besides; ``cost``
    of a network that has other layers than the project's; ``plain``, what was trained as a model of
    its own.
    """

    method: str
    stage: str

    def write_config(self) -> str: ...
    def enabled(self) -> tuple[str, ...]: ...
    def trained(self) -> int: ...
    def create(self) -> nn.Module: ...
    def finish(self, model: nn.Module) -> None: ...


def flow_of(run: Run, method: str) -> Any:
    """The flow called ``method``; ``WrongValue`` if there is none."""
    from workbench.studio.compressing import CompressionFlow
    from workbench.studio.distilling import DistillFlow
    from workbench.studio.finetuning import FinetuneFlow
    from workbench.studio.qat import QatFlow

    flows: Mapping[str, Callable[[Run], Any]] = {
        "qat": QatFlow,
        "distill": DistillFlow,
        "finetune": FinetuneFlow,
        "sparse": lambda run: CompressionFlow(run, "sparse"),
        "compressed": lambda run: CompressionFlow(run, "compressed"),
    }
    if method not in flows:
        raise WrongValue(
            f"there is no method {method!r}", where="train", hint=f"Allowed: {', '.join(flows)}."
        )
    return flows[method](run)


def train(run: Run) -> None:
    """Train with the project's training data; the result is kept beside the configuration."""
    asked = {key: value for key, value in run.args.items() if key != "resume"}
    method, resume = str(asked.get("method", "qat")), bool(run.args.get("resume"))
    settings = TrainingSettings.from_mapping(asked.get("settings") or {})
    run.report.stages(7, longest=5)
    ensure_open(run.workspace, run.report)
    project = run.workspace.project
    flow = flow_of(run, method)
    if method in QUANTISING:
        require_eligible(run.workspace)
    begun = time.perf_counter()
    data = training_data(
        project, run.source.model, run.source.calibration,
        live=run.workspace.live.train if run.workspace.live else None,
        batch_size=int(asked.get("batch_size") or project.settings.data.batch_size),
    )  # fmt: skip
    data = data.limited(int(asked.get("samples") or 0))
    for notice in data.notices:
        run.report(Notice(notice))
    keep_notices(project, data)
    loss, words = _loss_for(run, flow, asked, data)
    text = flow.write_config()
    facts = _begin(run, asked, resume, flow, data, words)
    run.report.stage(flow.stage)
    model = flow.create()
    run.report.stage("evaluating the float model")
    metric_float = evaluate_float(run)
    run.report.stage("evaluating before the training")
    facts |= _before(run, flow, model, metric_float, facts)
    run.store.put(**{KEY: facts})
    run.report.stage("training")
    if hasattr(flow, "train"):
        result = flow.train(model, data, settings)
    else:
        result = _train(run, flow, model, data, settings, loss, _identity(run, asked, text))
    run.report.flush(final=True)
    run.report.stage("evaluating")
    flow.finish(model)
    metric = run.source.metric(model, run.source.evaluation, on_event=run.report, cancel=run.cancel)
    with replace_on_success(project.weights_of(method)) as temporary:
        torch.save(model.state_dict(), temporary)
    seconds = float(facts.get("seconds", 0.0)) + time.perf_counter() - begun
    _add_trial(run, flow, metric, metric_float, seconds, text)
    facts |= _facts(flow, model)
    facts |= {
        "finished": True,
        "metric": metric,
        "steps": result.steps,
        "best_step": result.best_step,
        "stopped_early": result.stopped_early,
        "seconds": seconds,
    }
    run.store.put(**{KEY: facts})


def _begin(
    run: Run, asked: dict[str, Any], resume: bool, flow: Flow, data: TrainingData, loss: str
) -> dict[str, Any]:
    """Note in the project that this job trains, and make room for its checkpoints."""
    store, folder = run.store, run.workspace.project.checkpoints_of(flow.method)
    known = store.get(KEY) or {}
    facts: dict[str, Any] = {
        "method": flow.method, "asked": asked, "jobs": [run.job], "data": data.title, "loss": loss,
        "layers": flow.trained(), "columns": columns_hash(store.configuration()[1], flow.method),
    }  # fmt: skip
    if resume:
        if known.get("method") != flow.method or known.get("finished"):
            raise WrongState(
                "there is no stopped training to resume",
                where="train",
                hint="Start one with train().",
            )
        facts["jobs"] = [*known["jobs"], run.job]
        facts |= {name: known[name] for name in ("metric_before",) if name in known}
    else:
        remove_checkpoints(folder)
        groups_file(run.workspace.project).unlink(missing_ok=True)
        run.workspace.project.weights_of(flow.method).unlink(missing_ok=True)
        masks_file(run.workspace.project, flow.method).unlink(missing_ok=True)
    store.put(**{KEY: facts})
    return facts


def _before(
    run: Run, flow: Flow, model: nn.Module, metric_float: float, known: Mapping[str, Any]
) -> dict[str, Any]:
    """What is known of the model that is about to be trained; its metric is measured once."""
    found = _facts(flow, model)
    if flow.method == "finetune":
        found["metric_before"] = metric_float
    elif flow.method in COMPRESSING and "metric_before" not in known:
        model.eval()
        found["metric_before"] = run.source.metric(
            model, run.source.evaluation, on_event=run.report, cancel=run.cancel
        )
    return found


def _facts(flow: Any, model: nn.Module) -> dict[str, Any]:
    return dict(flow.facts(model)) if hasattr(flow, "facts") else {}


def _train(
    run: Run,
    flow: Flow,
    model: nn.Module,
    data: TrainingData,
    settings: TrainingSettings,
    loss: dict[str, Any],
    identity: str,
) -> TrainingResult:
    if run.args.get("loop"):
        return _own_loop(run, model, data)
    recipe, loader = None, data.loader
    if run.args.get("recipe"):
        recipe, loss, loader = _object(run, "recipe")(model), {}, data.as_given()
    return fit(
        model,
        loader,
        **loss,
        recipe=recipe,
        metric=lambda trained: run.source.metric(trained, run.source.evaluation, cancel=run.cancel),
        settings=settings,
        folder=run.workspace.project.checkpoints_of(flow.method),
        resume=bool(run.args.get("resume")),
        identity=identity,
        on_event=run.report,
        cancel=run.cancel,
    )


def _object(run: Run, name: str) -> Any:
    """The user's recipe or loop: the object of this process, else the one that is named."""
    found = run.workspace.training.get(name)
    if found is None:
        found = load_object(str(run.args[name]), what=name)
    if not callable(found):
        raise WrongType(
            f"{name} is a {type(found).__name__}, not a function",
            where=name,
            hint="It is called with the model that is to be trained.",
        )
    return found


def _own_loop(run: Run, model: nn.Module, data: TrainingData) -> TrainingResult:
    """The user's loop: ``loop(model, loader, report)``, ``report(loss, …)`` once a step."""
    loop = _object(run, "loop")
    count = 0

    def report(loss: Any, *, learning_rate: float = float("nan"), steps: int = 0) -> None:
        """Say that a step is done; raises ``Cancelled`` when the training is to stop."""
        nonlocal count
        run.cancel.check()
        count += 1
        value = loss.item() if hasattr(loss, "item") else float(loss)
        run.report(TrainStep(count, steps, 0, value, learning_rate))

    model.train()
    loop(model, data.as_given(), report)
    model.eval()
    return TrainingResult(count, None, count, False, None)


def chosen_loss(
    run: Run, name: str, data: TrainingData, *, method: str
) -> tuple[dict[str, Any], str]:
    """(arguments of ``fit``, in words): by the labels if there are any, else the float outputs."""
    if name not in LOSSES:
        raise WrongValue(
            f"there is no loss {name!r}", where="loss", hint=f"Allowed: {', '.join(LOSSES)}."
        )
    _, target = data.first()
    if name == "auto":
        name = "float"
        if target is not None:
            name = "mse" if target.is_floating_point() else "cross_entropy"
    if name != "float" and target is None:
        raise WrongValue(
            f"{name} needs labels, and the training data has none",
            where="loss",
            hint="Choose the loss 'float', which learns from the float model's outputs.",
        )
    if name == "cross_entropy":
        return {"loss": nn.CrossEntropyLoss()}, "cross-entropy with the labels"
    if name == "mse":
        return {"loss": nn.functional.mse_loss}, "squared error to the targets"
    teacher, whose = run.source.model, "the float model's"
    if method == "finetune":
        teacher, whose = _larger_model(run), "the larger model's"
    classes = run.source.metric.name == "top1"
    return {
        "teacher": copy_model(teacher),
        "loss": soft_cross_entropy if classes else nn.functional.mse_loss,
    }, f"distance to {whose} outputs"


def _larger_model(run: Run) -> nn.Module:
    """What a pruned or decomposed model was made of: of its own outputs it would learn nothing."""
    source = run.workspace.project.source
    if source.kind == "shrunk" and source.base.kind in ("zoo", "live", "hf"):
        return base_model(run.workspace.project, run.workspace.live)
    raise WrongValue(
        "fine-tuning needs labels: from its own outputs the model would learn nothing",
        where="loss",
        hint="Open the project with labelled training data: "
        "open_session(…, train=loader of (inputs, labels)).",
    )


def _loss_for(
    run: Run, flow: Flow, asked: Mapping[str, Any], data: TrainingData
) -> tuple[dict[str, Any], str]:
    """(arguments of ``fit``, in words) of what the job was asked for."""
    given = [name for name in ("recipe", "loop") if asked.get(name)]
    if hasattr(flow, "train"):
        if given or asked.get("loss", "auto") != "auto":
            raise WrongValue(
                f"{flow.method} compares block by block and takes no {(*given, 'loss')[0]}",
                where="train",
                hint="Leave it out, or train with method='qat'.",
            )
        return {}, "distance of each block's output to the float model's"
    if given:
        return {}, f"the user's own {given[0]}: {asked[given[0]]}"
    return chosen_loss(run, str(asked.get("loss") or "auto"), data, method=flow.method)


def _identity(run: Run, asked: Mapping[str, Any], config: str) -> str:
    """What a checkpoint depends on besides the settings."""
    rest = {key: value for key, value in asked.items() if key != "settings"}
    text = json.dumps([run.workspace.digest, config, rest], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _add_trial(
    run: Run, flow: Any, metric: float, metric_float: float, seconds: float, config: str
) -> None:
    """The trained network in the table of trials, with the cost of what it quantises."""
    workspace = run.workspace
    trained = set(flow.enabled())
    revision, columns = workspace.project.store.configuration()
    columns["quant_enable"] = [layer.name in trained for layer in workspace.layers]
    judged = workspace.with_columns(revision, columns).config if trained else None
    cost = flow.cost if hasattr(flow, "cost") else workspace.cost
    name = hashlib.sha256(config.encode()).hexdigest()[:12]
    run.store.add_trial(
        run.job, phase="train", kind="trained", metric=metric, loss=metric_float - metric,
        satisfied=True, seconds=seconds, float_layers=left_float(workspace, columns),
        config_hash=f"{flow.method}:{name}", cost=cost(judged),
        settings=workspace.settings(columns),
    )  # fmt: skip


def settings_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Checked settings as plain values, all of them, for the job and the page."""
    return dataclasses.asdict(TrainingSettings.from_mapping(values))
