"""Quantisation-aware training of a project: ``qat.json`` from the Layers table, and the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workbench.engine.errors import WrongState
from workbench.engine.files.retrain_config import RetrainConfig, default_retrain_config
from workbench.engine.flows.qat import create_quant_retrain_model, restore_quant_retrain_model
from workbench.engine.flows.qat_layers import retrain_layers
from workbench.engine.graph.layers import LayerInfo
from workbench.studio.project import write_whole

if TYPE_CHECKING:
    from workbench.studio.tasks import Run

ACTIVATION_TYPES = {8: "INT8", 16: "INT16"}


def weight_type(act_bits: int, wts_bits: int) -> str:
    """INT4 where it is asked for and goes with INT8 activations, else INT8."""
    return "INT4" if wts_bits == 4 and act_bits == 8 else "INT8"


def retrain_config(
    layers: Mapping[str, LayerInfo],
    order: Sequence[LayerInfo],
    columns: Mapping[str, Sequence[Any]],
    batch_num: int,
) -> RetrainConfig:
    """The configuration of the Layers table; ``order``: the layers of its rows.

    Errors: ``WrongState`` when no layer is to be trained.
    """
    config = default_retrain_config(layers)
    entries = dict(config.layers)
    for row, layer in enumerate(order):
        entry = entries.get(layer.name)
        if entry is None:
            continue
        bits = int(columns["act_bits"][row])
        entries[layer.name] = replace(
            entry,
            retrain_enable=bool(columns["retrain_enable"][row]),
            data=replace(entry.data, dst_type=ACTIVATION_TYPES[bits]),
            weight=replace(
                entry.weight,
                channel_wise=bool(columns["channel_wise"][row]),
                dst_type=weight_type(bits, int(columns["wts_bits"][row])),
            ),
        )
    if not any(entry.retrain_enable for entry in entries.values()):
        raise WrongState(
            "retrain_enable is off for every layer, so there is nothing to train",
            where="configuration",
            hint="Tick 'train' for at least one layer in Layers.",
        )
    return replace(config, batch_num=batch_num, layers=entries)


class QatFlow:
    """QAT as a training job needs it."""

    method = "qat"
    stage = "placing the quantisers"

    def __init__(self, run: Run) -> None:
        self._run = run
        project = run.workspace.project
        self._config, self._record = project.config_of("qat"), project.record_of("qat")

    def write_config(self) -> str:
        """Write ``qat.json``; its text."""
        workspace = self._run.workspace
        _, columns = workspace.project.store.configuration()
        config = retrain_config(
            retrain_layers(workspace.capture()), workspace.layers, columns, workspace.batch_num
        )
        text = config.to_json()
        write_whole(self._config, text)
        return text

    def enabled(self) -> tuple[str, ...]:
        """Layers that ``qat.json`` trains for quantisation."""
        found = json.loads(self._config.read_text(encoding="utf-8"))
        return tuple(
            name
            for name, entry in found.items()
            if isinstance(entry, dict) and entry.get("retrain_enable", True)
        )

    def trained(self) -> int:
        return len(self.enabled())

    def create(self) -> nn.Module:
        """The model with quantisers, their clip bounds found on the calibration data."""
        run = self._run
        self._record.unlink(missing_ok=True)  # it is written anew; nobody needs a warning
        model = create_quant_retrain_model(
            str(self._config), run.source.model, str(self._record), run.source.example,
            on_event=run.report, cancel=run.cancel,
        )  # fmt: skip
        model.eval()
        with torch.no_grad():
            for batch in run.source.calibration:
                run.cancel.check()
                model(*batch)
        return model

    def finish(self, model: nn.Module) -> None:
        """One evaluation forward writes ``qat.record.txt`` for the model as it is."""
        with torch.no_grad():
            model(*self._run.source.calibration[0])

    def restore(self, weights: Path) -> nn.Module:
        """The trained model again, from its weights."""
        run = self._run
        self._record.unlink(missing_ok=True)
        model = restore_quant_retrain_model(
            str(self._config), run.source.model, str(self._record), run.source.example,
            str(weights), on_event=run.report, cancel=run.cancel,
        )  # fmt: skip
        model.eval()
        self.finish(model)
        return model

    def save(self, model: nn.Module, prefix: str) -> None:
        """Write the ONNX files of a trained model."""
        from workbench.engine.flows.qat_save import save_quant_retrain_model

        run = self._run
        save_quant_retrain_model(
            str(self._config), model, str(self._record), prefix, run.source.example,
            on_event=run.report, cancel=run.cancel, **run.graph_names(),
        )  # fmt: skip
