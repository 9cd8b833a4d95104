"""Layer-wise distillation of a project: ``distill.json`` from the Layers table, and the student."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from workbench.engine.errors import WrongState
from workbench.engine.events import CheckpointWritten, DistillStep, Event, OnEvent, TrainStep
from workbench.engine.files.distill_config import DistillConfig, read_distill_config
from workbench.engine.flows.distill import create_distill_config, create_distill_model
from workbench.engine.flows.distill_run import distill
from workbench.engine.flows.distill_sample import DistillSampleBase
from workbench.engine.flows.distill_save import save_distill_model
from workbench.engine.flows.training import TrainingResult
from workbench.engine.graph.layers import LayerInfo
from workbench.studio.project import write_whole
from workbench.studio.qat import weight_type
from workbench.studio.training_state import groups_file

if TYPE_CHECKING:
    from workbench.engine.flows.training_settings import TrainingSettings
    from workbench.studio.tasks import Run
    from workbench.studio.training_data import TrainingData


def with_columns(
    config: DistillConfig,
    order: Sequence[LayerInfo],
    columns: Mapping[str, Sequence[Any]],
    batch_num: int,
) -> DistillConfig:
    """``config`` as the Layers table has it; ``order``: the layers of its rows.

    A layer whose ``retrain_enable`` is off stays float, and is still trained with its group.
    Errors: ``WrongState`` when no layer is to be quantised.
    """
    entries = dict(config.layers)
    for row, layer in enumerate(order):
        entry = entries.get(layer.name)
        if entry is None:
            continue
        kind = weight_type(int(columns["act_bits"][row]), int(columns["wts_bits"][row]))
        entries[layer.name] = replace(
            entry,
            quant_enable=bool(columns["retrain_enable"][row]),
            activation=replace(entry.activation, dst_type=kind),
            weight=replace(
                entry.weight, channel_wise=bool(columns["channel_wise"][row]), dst_type=kind
            ),
        )
    if not any(entry.quant_enable for entry in entries.values()):
        raise WrongState(
            "retrain_enable is off for every layer that can be distilled",
            where="configuration",
            hint="Tick 'train' for at least one Conv2d or Linear in Layers.",
        )
    return replace(config, batch_num=batch_num, layers=entries)


class _Inputs(DistillSampleBase):
    @staticmethod
    def get_model_input_data(samples: Any) -> tuple[Tensor, ...]:
        inputs: tuple[Tensor, ...] = samples[0]
        return inputs


class _Items(IterableDataset[Any]):
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __iter__(self) -> Any:
        return iter(self._loader)


class DistillFlow:
    """Distillation as a training job needs it."""

    method = "distill"
    stage = "placing the quantisers"

    def __init__(self, run: Run) -> None:
        self._run = run
        project = run.workspace.project
        self._config, self._record = project.config_of("distill"), project.record_of("distill")

    def write_config(self) -> str:
        """Write ``distill.json``; its text."""
        run, workspace = self._run, self._run.workspace
        self._config.unlink(missing_ok=True)  # it is written anew; nobody needs a warning
        create_distill_config(str(self._config), run.source.model, run.source.example)
        config = read_distill_config(str(self._config))
        _, columns = workspace.project.store.configuration()
        config = with_columns(config, workspace.layers, columns, workspace.batch_num)
        text = config.to_json()
        write_whole(self._config, text)
        return text

    def enabled(self) -> tuple[str, ...]:
        """Layers that ``distill.json`` quantises."""
        found = json.loads(self._config.read_text(encoding="utf-8"))
        return tuple(
            name
            for name, entry in found.items()
            if isinstance(entry, dict) and entry.get("quant_enable", True)
        )

    def trained(self) -> int:
        return len(self.enabled())

    def create(self) -> nn.Module:
        run = self._run
        return create_distill_model(
            str(self._config), run.source.model, run.source.example,
            on_event=run.report, cancel=run.cancel,
        )  # fmt: skip

    def train(
        self, model: nn.Module, data: TrainingData, settings: TrainingSettings
    ) -> TrainingResult:
        """Train block after block on one pass of the data, kept for all of them."""
        run = self._run
        groups = len(json.loads(self._config.read_text(encoding="utf-8"))["distill_group"])
        counted = _Counted(run.report, groups, settings.epochs, settings.learning_rate)
        distill(
            run.source.model, model, str(self._config),
            DataLoader(_Items(data.loader), batch_size=None),
            settings.epochs, settings.learning_rate, _Inputs(),
            checkpoint=str(groups_file(run.workspace.project)), seed=settings.seed,
            on_event=counted, cancel=run.cancel,
        )  # fmt: skip
        model.eval()
        return TrainingResult(counted.done, None, counted.done, False, None)

    def finish(self, model: nn.Module) -> None:
        model.eval()

    def restore(self, weights: Path) -> nn.Module:
        """The trained student again, from its weights."""
        model = self.create()
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        return model.eval()

    def save(self, model: nn.Module, prefix: str) -> None:
        """Write the ONNX files of a trained student."""
        run = self._run
        self._record.unlink(missing_ok=True)
        save_distill_model(
            model, prefix, run.source.example, str(self._record),
            on_event=run.report, cancel=run.cancel, **run.graph_names(),
        )  # fmt: skip


class _Counted:
    """Steps of all groups as those of one training, whose epochs are the groups."""

    def __init__(self, report: OnEvent, groups: int, epochs: int, rate: float) -> None:
        self._report, self._groups, self._epochs, self._rate = report, groups, epochs, rate
        self.done = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, DistillStep):
            # Counted from what the event says: a resumed distillation begins in a later group.
            before = event.group * self._epochs + event.epoch
            self.done = before * event.steps + event.step + 1
            total = self._groups * self._epochs * event.steps
            event = TrainStep(self.done, total, event.group, event.loss, self._rate)
        elif isinstance(event, CheckpointWritten):
            event = CheckpointWritten(self.done, event.path, event.size)
        self._report(event)
