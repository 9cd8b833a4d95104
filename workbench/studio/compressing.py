"""2:4 sparsity and combined compression of a project: their text configuration and the model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workbench.engine.analysis.cost import Cost, model_cost
from workbench.engine.export.save import output_paths
from workbench.engine.files.config import QuantConfig
from workbench.engine.files.record import read_record
from workbench.engine.flows.compress import (
    create_compressed_retrain_model,
    restore_compressed_retrain_model,
    save_compressed_retrain_model,
)
from workbench.engine.flows.prune import rebuild_pruned
from workbench.engine.flows.prune_layers import prune_layers
from workbench.engine.flows.qat_layers import retrain_layers
from workbench.engine.flows.selective import fold_sparsity, update_prune_record
from workbench.engine.graph.capture import capture
from workbench.engine.modules.sparsity.entries import masked_layers
from workbench.studio.compression_config import (
    chosen_for_pruning,
    compression_for,
    compression_text,
    read_compression,
)
from workbench.studio.masks import keep_masks, mask_rows, missing_zeros
from workbench.studio.project import write_whole
from workbench.studio.state import ParityLine

if TYPE_CHECKING:
    from workbench.studio.tasks import Run


class CompressionFlow:
    """Pruning, 2:4 sparsity and quantisation in one training, as a job needs it.

    ``method`` 'sparse' is 2:4 sparsity alone; 'compressed' whatever ``compression`` among the
    job's arguments says.
    """

    stage = "placing masks and quantisers"

    def __init__(self, run: Run, method: str) -> None:
        self.method = method
        self._run = run
        project = run.workspace.project
        self._config, self._record = project.config_of(method), project.record_of(method)
        if (asked := run.args.get("compression")) is not None or not self._config.is_file():
            self.wanted = compression_for(method, asked or {})
        else:
            self.wanted = read_compression(self._config)

    def write_config(self) -> str:
        """Write ``<method>.cfg`` from the Layers table; its text."""
        workspace = self._run.workspace
        captured = workspace.capture()
        _, columns = workspace.project.store.configuration()
        text = compression_text(
            self.wanted,
            workspace.layers,
            columns,
            trainable=retrain_layers(captured),
            prunable=prune_layers(captured),
            batch_num=workspace.batch_num,
        )
        write_whole(self._config, text)
        return text

    def enabled(self) -> tuple[str, ...]:
        """Layers that get quantisers."""
        if not self.wanted.quantise:
            return ()
        workspace = self._run.workspace
        _, columns = workspace.project.store.configuration()
        trainable = retrain_layers(workspace.capture())
        return tuple(
            layer.name
            for row, layer in enumerate(workspace.layers)
            if columns["retrain_enable"][row]
            and layer.name in trainable
            and trainable[layer.name].eligible
        )

    def trained(self) -> int:
        if self.wanted.quantise:
            return len(self.enabled())
        return sum(layer.has_weight for layer in self._run.workspace.layers)

    def create(self) -> nn.Module:
        """The compressed model, the clip bounds of its quantisers found on the calibration data."""
        run = self._run
        self._record.unlink(missing_ok=True)  # it is written anew; nobody needs a warning
        model = create_compressed_retrain_model(
            run.source.model, run.source.example, str(self._config), str(self._record),
            on_event=run.report, cancel=run.cancel,
        )  # fmt: skip
        model.eval()
        with torch.no_grad():
            for batch in run.source.calibration if self.wanted.quantise else ():
                run.cancel.check()
                model(*batch)
        return model

    def facts(self, model: nn.Module) -> dict[str, Any]:
        """Which layers have a mask now, and why others have none; their weights for the chart."""
        if self.wanted.sparsity != "2:4":
            return {}
        workspace = self._run.workspace
        _, columns = workspace.project.store.configuration()
        chosen = chosen_for_pruning(workspace.layers, columns, ratio=self.wanted.prune_ratio)
        rows = mask_rows(model, prune_layers(workspace.capture()), chosen)
        keep_masks(workspace.project, self.method, model, rows)
        return {"masks": [asdict(row) for row in rows]}

    def finish(self, model: nn.Module) -> None:
        """Bring the record up to date with the model as it is."""
        model.eval()
        if self.wanted.quantise:
            with torch.no_grad():
                model(*self._run.source.calibration[0])
        elif masked_layers(model):
            update_prune_record(model, str(self._record))

    def plain(self, model: nn.Module) -> nn.Module | None:
        """The trained network as a model of its own; None: it is more than other weights."""
        only_masks = self.wanted.sparsity == "2:4" and not self.wanted.quantise
        return fold_sparsity(model) if only_masks else None

    def cost(self, config: QuantConfig | None) -> Cost:
        """Of the trained network, which may have fewer channels than the project's."""
        run, workspace = self._run, self._run.workspace
        if self.wanted.sparsity != "channels":
            return workspace.cost(config)
        dense = capture(run.source.model, run.source.example, dynamic=False)
        record = read_record(str(self._record))
        smaller = rebuild_pruned(run.source.model, dense, record, str(self._record))
        captured = capture(smaller, run.source.example, dynamic=False)
        size = sum(p.numel() * p.element_size() for p in smaller.parameters())
        return model_cost(captured.layers, config, size)

    def restore(self, weights: Path) -> nn.Module:
        """The trained model again, from its weights."""
        run = self._run
        model = restore_compressed_retrain_model(
            run.source.model, run.source.example, str(self._config), str(self._record),
            str(weights), on_event=run.report, cancel=run.cancel,
        )  # fmt: skip
        self.finish(model)
        return model

    def save(self, model: nn.Module, prefix: str) -> dict[str, Path] | None:
        """Write the ONNX files; those that are plain float models, None if they are quantised."""
        run = self._run
        save_compressed_retrain_model(
            model, str(self._record), prefix, run.source.example,
            on_event=run.report, cancel=run.cancel, **run.graph_names(),
        )  # fmt: skip
        if self.wanted.quantise:
            return None
        paths = output_paths(prefix)
        paths.qdq.unlink(missing_ok=True)  # of an earlier training, which had quantisers
        return {"compressed": paths.fake_quant, "compressed_deploy": paths.deploy}

    def checks(self, model: nn.Module, prefix: str) -> tuple[ParityLine, ...]:
        """Whether the files have the zeros of the masks."""
        count = sum(layer.density < 1.0 for layer in masked_layers(model).values())
        if not count:
            return ()
        paths = output_paths(prefix)
        lines = []
        for path in (paths.fake_quant, paths.deploy):
            missing = missing_zeros(path, model)
            words = f"the zeros of {count} masked layers are in {path.name}"
            if missing:
                words = f"{path.name} lacks zeros of {', '.join(missing[:5])}"
            lines.append(ParityLine(words, not missing, 0.0, missing[0] if missing else None))
        return tuple(lines)
