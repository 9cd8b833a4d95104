"""The weights that ship with the package, as safetensors."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn


def read_weights(name: str) -> dict[str, Tensor]:
    """State dict of the example ``name``; `FileNotFoundError` if it was never trained."""
    resource = files("workbench.zoo") / "weights" / f"{name}.safetensors"
    if not resource.is_file():
        raise FileNotFoundError(
            f"{resource}: no weights for {name!r}; make them with "
            f"`python -m workbench.zoo.train {name}`"
        )
    return dict(load_tensors(resource.read_bytes()))


def write_weights(model: nn.Module, path: Path) -> None:
    """Write the model's state dict to ``path`` (.safetensors), float32 and contiguous."""
    tensors = {key: value.detach().contiguous() for key, value in model.state_dict().items()}
    metadata = {"torch": torch.__version__.split("+")[0]}
    Path(path).write_bytes(save_tensors(tensors, metadata=metadata))
