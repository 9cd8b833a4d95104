"""Fine-tuning of a project's float model: what follows pruning and decomposition."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from workbench.engine.errors import WrongState
from workbench.engine.export.float_onnx import to_onnx
from workbench.engine.export.onnx_file import save_onnx
from workbench.engine.graph.capture import capture
from workbench.engine.graph.copying import copy_for_training

if TYPE_CHECKING:
    from workbench.studio.tasks import Run


class FinetuneFlow:
    """Training of every parameter that is not frozen, without quantisers, as a job needs it."""

    method = "finetune"
    stage = "copying the model"

    def __init__(self, run: Run) -> None:
        self._run = run

    def write_config(self) -> str:
        """Nothing decides a fine-tuning but its arguments."""
        return ""

    def enabled(self) -> tuple[str, ...]:
        """Nothing is quantised."""
        return ()

    def trained(self) -> int:
        return sum(layer.has_weight for layer in self._run.workspace.layers)

    def create(self) -> nn.Module:
        """A copy of the model. ``WrongState`` if all of it is frozen."""
        model = copy_for_training(self._run.source.model)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise WrongState(
                "no parameter of the model is trainable",
                where="model",
                hint="Set requires_grad of those that are to be trained.",
            )
        return model

    def finish(self, model: nn.Module) -> None:
        model.eval()

    def plain(self, model: nn.Module) -> nn.Module:
        """The trained network as a model of its own."""
        return model

    def restore(self, weights: Path) -> nn.Module:
        """The trained model again, from its weights."""
        model = copy_for_training(self._run.source.model)
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        return model.eval()

    def save(self, model: nn.Module, prefix: str) -> dict[str, Path]:
        """Write the trained float model; its file."""
        path = Path(f"{prefix}_trained_model.onnx")
        captured = capture(model, self._run.source.example, on_event=self._run.report)
        save_onnx(to_onnx(captured, None, **self._run.graph_names()), str(path), suffix=".external")
        return {"trained": path}
