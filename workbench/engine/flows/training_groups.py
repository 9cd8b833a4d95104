"""Which of a model's parameters learn how fast: weights, clip bounds, weight scales."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.errors import WrongState
from workbench.engine.flows.training_settings import TrainingSettings

CLIP_ENDS = ("clip_max", "clip_min")
WRAPPERS = frozenset({"quant_module", "replaced_module"})
"""Modules that stand between a quantised layer's name and its parameters."""


def is_clip(name: str) -> bool:
    """Whether a parameter's name is that of an activation's clip bound."""
    return name.rpartition(".")[2].endswith(CLIP_ENDS)


def is_scale(name: str) -> bool:
    """Whether a parameter's name is that of learned weight scales."""
    return name.rpartition(".")[2].endswith("wts_scales")


def layer_of(name: str) -> str:
    """The layer a parameter belongs to: ``a.quant_module.acts_clip_max`` is of ``a``."""
    parts = name.split(".")[:-1]
    while parts and parts[-1] in WRAPPERS:
        parts.pop()
    return ".".join(parts)


def parameter_groups(model: nn.Module, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Groups for an optimiser; only weights of at least two dimensions decay.

    Errors: ``WrongState`` when no parameter of the model can be trained.
    """
    rate = settings.learning_rate
    groups: dict[str, dict[str, Any]] = {
        "weights": {"lr": rate, "weight_decay": settings.weight_decay},
        "biases": {"lr": rate, "weight_decay": 0.0},
        "clips": {"lr": rate * settings.clip_rate, "weight_decay": 0.0},
        "scales": {"lr": rate * settings.scale_rate, "weight_decay": 0.0},
    }
    members: dict[str, list[Tensor]] = {name: [] for name in groups}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if is_clip(name):
            kind = "clips"
        elif is_scale(name):
            kind = "scales"
        else:
            kind = "weights" if parameter.dim() > 1 else "biases"
        members[kind].append(parameter)
    if not any(members.values()):
        raise WrongState(
            "no parameter of the model can be trained",
            where="model",
            hint="Set requires_grad of what shall learn.",
        )
    return [
        {"params": found, "name": name, **groups[name]} for name, found in members.items() if found
    ]


class ClipWatch:
    """Reads the clip bounds of all layers of a model, at once."""

    def __init__(self, model: nn.Module) -> None:
        pairs: dict[str, dict[str, Tensor]] = {}
        for name, parameter in model.named_parameters():
            if is_clip(name) and parameter.numel() == 1:
                # A recurrent layer has bounds for its hidden state too: h_clip_max and the like.
                stem, _, end = name.rpartition("clip_")
                pairs.setdefault(stem, {})[end] = parameter
        self._pairs = [
            (_title(stem), pair["min"], pair["max"])
            for stem, pair in pairs.items()
            if len(pair) == 2
        ]

    def __bool__(self) -> bool:
        return bool(self._pairs)

    def read(self) -> tuple[tuple[str, float, float], ...]:
        """(layer, min, max) of each, in the order of the model's modules."""
        flat = [bound.detach().reshape(()) for _, low, high in self._pairs for bound in (low, high)]
        values = iter(torch.stack(flat).tolist())
        return tuple((name, next(values), next(values)) for name, _, _ in self._pairs)


def _title(stem: str) -> str:
    prefix = stem.rpartition(".")[2].removeprefix("acts_")
    layer = layer_of(f"{stem}x")
    return f"{layer} ({prefix.rstrip('_')})" if prefix else layer
