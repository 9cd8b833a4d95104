"""A folder of ``transformers`` as one float network: plain inputs in, one tensor out."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.errors import MissingFile, WrongType, WrongValue
from workbench.engine.files.tensor_folder import TensorFolder
from workbench.engine.flows.folder_model import CONFIG, FolderWeights, model_of_folder


class FolderNetwork(nn.Module):
    """Calls ``model`` and returns its logits, or else its last hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # A cache of keys and values is state that no graph holds.
        known = inspect.signature(model.forward).parameters
        self._options = {"use_cache": False} if "use_cache" in known else {}

    def run(self, **inputs: Tensor | None) -> Tensor:
        given = {name: value for name, value in inputs.items() if value is not None}
        output = self.model(**given, return_dict=True, **self._options)
        for name in ("logits", "last_hidden_state"):
            if isinstance(output.get(name), Tensor):
                return output[name]  # type: ignore[no-any-return]
        raise WrongType(
            f"the model returns {', '.join(output)}; allowed: logits or last_hidden_state",
            where=type(self.model).__name__,
            hint="Wrap the model yourself and open that.",
        )


class TextNetwork(FolderNetwork):
    """``input_ids`` and ``attention_mask`` of shape (samples, tokens)."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.run(input_ids=input_ids, attention_mask=attention_mask)


class PictureNetwork(FolderNetwork):
    """``pixel_values`` of shape (samples, channels, height, width)."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.run(pixel_values=pixel_values)


class SoundNetwork(FolderNetwork):
    """``input_values`` of shape (samples, time)."""

    def forward(self, input_values: Tensor) -> Tensor:
        return self.run(input_values=input_values)


_BY_INPUT: dict[str, type[FolderNetwork]] = {
    "input_ids": TextNetwork,
    "pixel_values": PictureNetwork,
    "input_values": SoundNetwork,
}


def load_folder_model(path: str | Path) -> nn.Module:
    """The model of a folder with ``config.json`` and safetensors, with its weights, in eval mode.

    Code that lies in the folder is never run. Errors: ``FileNotFoundError``; ``ImportError`` with
    what to install; ``ValueError`` for a model that transformers does not know, weights that do not
    fit it, and inputs other than text, pictures and sound.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        raise MissingFile(
            f"there is no {CONFIG} in this folder",
            where=str(folder),
            hint="Choose a folder that save_pretrained has written.",
        )
    model: Any = model_of_folder(folder)
    network = _BY_INPUT.get(getattr(model, "main_input_name", ""))
    if network is None:
        raise WrongValue(
            f"its input {getattr(model, 'main_input_name', '?')!r} is not read; "
            f"allowed: {', '.join(_BY_INPUT)}",
            where=str(folder / CONFIG),
            hint="Wrap the model yourself and open that.",
        )
    FolderWeights(model, TensorFolder(folder)).fill(model)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    if any(parameter.is_meta for parameter in model.parameters()):
        model.tie_weights()
    with torch.no_grad():
        return network(model).eval()
