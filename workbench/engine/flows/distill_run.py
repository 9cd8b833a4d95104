"""``distill``: train a student's groups, one after another, against its teacher.

Source: specification chapter 50 sections 8, 9 and 12, with D3 to D5, D12, D13 and D15 to D18.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from workbench.engine.errors import WrongState, WrongValue
from workbench.engine.events import CancelToken, Notice, OnEvent, Progress, check, emit
from workbench.engine.files.atomic import ensure_writable
from workbench.engine.files.distill_config import DistillConfig, read_distill_config
from workbench.engine.flows.arguments import check_model, check_path, check_type
from workbench.engine.flows.distill_blocks import (
    BlockSource,
    CapturedBlocks,
    Chains,
    GroupError,
    RecomputedBlocks,
    calibrate,
    keep_model_batch,
    model_batch,
)
from workbench.engine.flows.distill_checkpoint import GroupCheckpoint
from workbench.engine.flows.distill_models import (
    average_clips,
    in_eval_mode,
    require_equal_lengths,
    require_same_network,
    written_back,
)
from workbench.engine.flows.distill_optimiser import Rates, trainable
from workbench.engine.flows.distill_ranges import ranges_of
from workbench.engine.flows.distill_sample import (
    DistillSampleBase,
    ModelSingleTensorInput,
    model_inputs,
    naming_batch,
)
from workbench.engine.flows.distill_store import TensorStore
from workbench.engine.flows.distill_student import (
    facts_of_modules,
    module_types,
    refuse_quantised,
    student_layers,
)
from workbench.engine.flows.distill_training import GroupReport, GroupSettings, GroupTraining
from workbench.engine.flows.ptq import resolve_compat
from workbench.engine.flows.qat_state import unwrapped

log = logging.getLogger("workbench.engine.flows.distill")

Cache = Literal["auto", "memory", "disk", "none"]
_CACHES = ("auto", "memory", "disk", "none")
_DEFAULT_LR = 1e-3
_RANGE_BATCHES = 8
"""Batches whose ranges the file with int8 kernels gets, as in quantisation-aware training."""


def distill(
    model: nn.Module,
    compress_model: nn.Module,
    config_file: str,
    train_loader: DataLoader[Any],
    epochs: int = 1,
    lr: float = 1e-3,
    sample_instance: DistillSampleBase | None = None,
    loss: nn.Module | None = None,
    optimizer: Optimizer | None = None,
    *,
    cache: Cache = "auto",
    cache_dir: str | None = None,
    cache_budget_mb: int = 1024,
    keep_best: bool = True,
    report: bool = False,
    checkpoint: str | None = None,
    compat: bool | None = None,
    seed: int = 0,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> nn.Module:
    """Train the student ``compress_model`` in place against the teacher ``model``; returns it.

    ``train_loader``: labels are not needed; it is read once, and its batches serve every epoch of
    every group in an order drawn from ``seed``. ``sample_instance`` turns an item of it into the
    model's inputs; by default the first element is the only one. ``loss(student, teacher)``, by
    default the mean squared error. ``optimizer`` is a template: each group gets a new one of its
    class, with its settings; clip bounds and learned weight scales keep rates of their own.

    ``cache`` says where what the groups read and give is kept: ``auto`` is memory up to
    ``cache_budget_mb``, then files in a fresh folder under ``cache_dir``; ``none`` computes it anew
    for each step. It is gone afterwards, whatever happens. ``keep_best``: a group is left in its
    best state after any epoch, or as it was before. ``report`` stores what became of each group in
    ``student.distill_report_``. ``checkpoint`` names a file that holds the student after each
    finished group: the same call, after an interruption, goes on from there to the same result, and
    removes it at the end. ``compat``: weights are written back at every forward and all
    learns as in the reference; None is what the configuration was created with.

    Both models run in eval mode; their flags are restored, and the teacher is not changed. A cancel
    leaves the group that was being trained as it was before.

    Errors: ``TypeError``; ``ValueError`` for ``epochs`` below 1, an empty loader, what is wrong in
    the configuration, and a group that is no chain; ``RuntimeError`` for a teacher with
    quantisation modules, a student without, and a sampler that gives no tensors;
    ``TrainingDiverged`` for a loss that is not finite; ``Cancelled``.

    Source: specification chapter 50 section 8.
    """
    function = "distill"
    check_model(function, model)
    check_type(function, "compress_model", compress_model, nn.Module)
    check_type(function, "config_file", config_file, str)
    check_type(function, "train_loader", train_loader, DataLoader)
    check_type(function, "epochs", epochs, int, bool)
    check_type(function, "lr", lr, float, int)
    check_type(function, "sample_instance", sample_instance, DistillSampleBase, optional=True)
    check_type(function, "loss", loss, nn.Module, optional=True)
    check_type(function, "optimizer", optimizer, Optimizer, optional=True)
    if checkpoint is not None:
        check_path(function, "checkpoint", checkpoint)
        ensure_writable(checkpoint)
    _check_values(epochs, lr, cache, cache_budget_mb)
    if optimizer is not None and lr != _DEFAULT_LR:
        log.warning("lr=%s is ignored: the optimizer's own learning rate is used", lr)
    teacher, student = unwrapped(function, model), unwrapped(function, compress_model)
    refuse_quantised(function, teacher)
    if not student_layers(student):
        raise WrongState(
            "compress_model has no quantised layer (Conv2dQAT or LinearQAT)",
            where="distill()",
            hint="Give the model that create_distill_model returned.",
        )
    config = read_distill_config(config_file, facts_of_modules(teacher), module_types(teacher))
    compat = resolve_compat(config_file, compat)
    if student.training:
        log.warning("the student is in training mode; it is distilled in eval mode")
    rates = Rates(float(lr), optimizer, compat)
    if ignored := rates.ignored():
        log.warning("the optimizer's settings that do not reach the groups: %s", ", ".join(ignored))
    settings = GroupSettings(
        epochs=int(epochs),
        loss=loss or nn.MSELoss(),
        rates=rates,
        keep_best=keep_best,
        joint=isinstance(compress_model, DistributedDataParallel),
        seed=seed,
    )
    progress = None
    if checkpoint is not None:
        progress = GroupCheckpoint(checkpoint, _identity(config, settings))
    run = _Run(
        teacher,
        student,
        config,
        _Options(
            cache="disk" if config.data_dump and cache == "auto" else cache,
            cache_dir=cache_dir,
            budget=cache_budget_mb << 20,
            sampler=sample_instance or ModelSingleTensorInput(),
        ),
        on_event,
        cancel,
    )
    with ExitStack() as stack:
        stack.enter_context(in_eval_mode(teacher))
        stack.enter_context(in_eval_mode(student))
        if compat:
            stack.enter_context(written_back(student))
        reports = run.train(train_loader, settings, progress)
    _log_total(reports)
    if report:
        object.__setattr__(student, "distill_report_", [asdict(one) for one in reports])
    return student


@dataclass(frozen=True)
class _Options:
    cache: Cache
    cache_dir: str | None
    budget: int
    sampler: DistillSampleBase


class _Run:
    """Reads the loader, calibrates the student, trains the groups."""

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        config: DistillConfig,
        options: _Options,
        on_event: OnEvent | None,
        cancel: CancelToken | None,
    ) -> None:
        self._chains = Chains(config.groups, teacher, student)
        self._config = config
        self._options = options
        self._on_event = on_event
        self._cancel = cancel
        mode = options.cache if options.cache in ("memory", "disk") else "auto"
        self._store = TensorStore(
            mode,
            budget=options.budget,
            folder=options.cache_dir,
        )

    def train(
        self,
        loader: DataLoader[Any],
        settings: GroupSettings,
        checkpoint: GroupCheckpoint | None,
    ) -> list[GroupReport]:
        self._check_groups()
        student = self._chains.student_model
        try:
            source, batches = self._capture(loader)
            if settings.joint:
                require_equal_lengths(batches, self._chains.device)
            reports = [] if checkpoint is None else checkpoint.load(student)
            if not reports:
                self._calibrate(batches, settings.joint)
            self._forget(len(reports))
            settings = replace(settings, batches=batches)
            for group in range(len(reports), len(self._chains.names)):
                reports.append(self._group(group, source, settings))
                if checkpoint is not None:
                    checkpoint.save(student, reports, self._on_event)
            self._find_ranges(batches)
            if checkpoint is not None:
                checkpoint.remove()
            return reports
        finally:
            self._store.close()

    def _find_ranges(self, batches: int) -> None:
        student = self._chains.student_model
        ranges = ranges_of(student)
        if ranges is not None:
            count = min(batches, _RANGE_BATCHES)
            ranges.record(student, (model_batch(self._store, batch) for batch in range(count)))

    def _calibrate(self, batches: int, joint: bool) -> None:
        student, count = self._chains.student_model, self._config.batch_num
        calibrate(student, self._store, batches, count, self._on_event, self._cancel)
        if joint:
            average_clips(student)

    def _group(self, group: int, source: BlockSource, settings: GroupSettings) -> GroupReport:
        training = GroupTraining(
            self._chains,
            group,
            source,
            settings,
            on_event=self._on_event,
            cancel=self._cancel,
        )
        report = training.run()
        log.info(
            "%s: mean loss %.6g before, %s after each epoch, %.6g kept",
            self._chains.title(group),
            report.loss_before,
            ", ".join(f"{value:.6g}" for value in report.epoch_losses),
            report.loss_after,
        )
        return report

    def _check_groups(self) -> None:
        for group, names in enumerate(self._chains.names):
            known = dict(self._chains.student_model.named_modules())
            missing = [name for name in names if name not in known]
            if missing:
                raise WrongState(
                    f"the student has no module {', '.join(missing)}",
                    where=self._chains.title(group),
                    hint="Give the model that create_distill_model made with this configuration.",
                )
            if not trainable(self._chains.student(group)):
                raise GroupError(
                    "the group has no parameter that can be trained",
                    where=self._chains.title(group),
                    hint="Leave the group out, or set requires_grad of what shall learn.",
                )
        require_same_network(self._chains.teacher_model, self._chains.student_model)

    def _capture(self, loader: DataLoader[Any]) -> tuple[BlockSource, int]:
        """Read the loader once: the model's inputs, and unless ``none`` what the groups see."""
        captured: CapturedBlocks | None = CapturedBlocks(self._chains, self._store)
        total = _length(loader)
        batches = 0
        for item in loader:
            check(self._cancel)
            inputs = model_inputs(self._options.sampler, item, self._chains.device)
            keep_model_batch(self._store, inputs)
            if captured is not None and self._chains.names:
                with naming_batch(batches, inputs, ranges_of(self._chains.student_model)):
                    size = captured.capture(model_batch(self._store, batches), first=not batches)
                if not batches and not self._room_for(size * total):
                    captured = None
                    self._forget(len(self._chains.names))
            batches += 1
            emit(self._on_event, Progress("capture", batches, total))
        if not batches:
            raise WrongValue(
                "train_loader yields nothing",
                where="distill()",
                hint="It must yield at least one batch.",
            )
        if captured is None:
            return RecomputedBlocks(self._chains, self._store), batches
        return captured, batches

    def _room_for(self, size: int) -> bool:
        """Whether the block data of all batches shall be kept, by what those of the first take."""
        if self._options.cache == "none":
            return False
        beyond = size - (self._options.budget if self._options.cache == "auto" else 0)
        if self._options.cache == "memory" or beyond <= 0:
            return True
        free = self._store.free_disk()
        if beyond <= free:
            return True
        need = f"about {beyond >> 20} MB on disk are needed, {free >> 20} MB are free"
        if self._options.cache == "disk":
            raise WrongState(
                f"the cache does not fit: {need}",
                where="cache_dir",
                hint="Name a folder with more room, give fewer batches, or choose cache='none'.",
            )
        message = f"Block data is computed anew for each step: {need}."
        log.warning(message)
        emit(self._on_event, Notice(message))
        return False

    def _forget(self, groups: int) -> None:
        """Drop what the first ``groups`` groups read and give."""
        for group in range(groups):
            for role in ("input", "target"):
                self._store.drop(f"{group} {role}")


def _identity(config: DistillConfig, settings: GroupSettings) -> dict[str, Any]:
    """What the result depends on, for a checkpoint; models and data are the caller's to keep."""
    template = settings.rates.template
    return {
        "configuration": config.to_json(),
        "epochs": settings.epochs,
        "lr": settings.rates.lr,
        "loss": type(settings.loss).__name__,
        "optimizer": "" if template is None else f"{type(template).__name__} {template.defaults}",
        "keep_best": settings.keep_best,
        "compat": settings.rates.compat,
        "seed": settings.seed,
    }


def _check_values(epochs: int, lr: float, cache: str, cache_budget_mb: int) -> None:
    if epochs < 1:
        raise WrongValue(f"epochs is {epochs}; allowed: 1 or more", where="distill()")
    if not 0 < lr < float("inf"):
        raise WrongValue(f"lr is {lr}; allowed: a finite number above 0", where="distill()")
    if cache not in _CACHES:
        raise WrongValue(f"cache is {cache!r}; allowed: {', '.join(_CACHES)}", where="distill()")
    check_type("distill", "cache_budget_mb", cache_budget_mb, int)
    if cache_budget_mb < 0:
        raise WrongValue(
            f"cache_budget_mb is {cache_budget_mb}; allowed: 0 or more", where="distill()"
        )


def _length(loader: DataLoader[Any]) -> int:
    """Batches of the loader; 0 when it does not say."""
    try:
        length = len(loader)
    except TypeError:
        return 0
    if not length:
        raise WrongValue(
            "train_loader has no batches",
            where="distill()",
            hint="Its data set is empty, or smaller than a batch with drop_last=True.",
        )
    return length


def _log_total(reports: list[GroupReport]) -> None:
    before = sum(report.loss_before for report in reports)
    after = sum(report.loss_after for report in reports)
    log.info("%d groups: sum of mean losses %.6g before, %.6g after", len(reports), before, after)
