"""The optimiser of a group: what is trained, and how fast (chapter 50 section 8.4, D3 and D13)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from workbench.engine.errors import WrongValue
from workbench.engine.flows.training_groups import is_clip, is_scale
from workbench.engine.modules.qat.quantisers import mean_over_ranks

CLIP_RATE = 0.1
SCALE_RATE = 1e-4
_FULL_RANGE = 6.0
"""Bounds at or above it learn at the full rate: that of a ReLU6."""

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Rates:
    """``lr`` and a template decide how the weights learn; ``compat``: as the reference does."""

    lr: float = 1e-3
    template: Optimizer | None = None
    compat: bool = False

    def build(self, parameters: list[dict[str, Any]]) -> Optimizer:
        """A new optimiser over parameter groups; those of clips and scales have rates already.

        Raises ``WrongValue`` when the template's class needs more than its defaults to be built.
        """
        if self.template is None:
            return AdamW(parameters, lr=self.lr)
        kind: Any = type(self.template)
        if self.compat:
            options = {"lr": self.template.param_groups[0]["lr"]}
        else:
            known = inspect.signature(kind).parameters
            options = {k: v for k, v in self.template.defaults.items() if k in known}
            options["lr"] = self.template.param_groups[0].get("lr", self.lr)
        try:
            optimizer: Optimizer = kind(parameters, **options)
        except TypeError as error:
            raise WrongValue(
                f"a {kind.__name__} cannot be built for each group from its defaults: {error}",
                where="optimizer",
                hint="Give an optimiser whose class takes (params, lr=...) and keywords that it "
                "keeps in .defaults.",
            ) from error
        return optimizer

    def ignored(self) -> list[str]:
        """Settings of the template that the optimisers of the groups do not take over."""
        if self.template is None:
            return []
        built = self.build([{"params": [torch.zeros(1, 1, requires_grad=True)]}])
        given = self.template.defaults
        lost = [
            f"{key}={value}"
            for key, value in given.items()
            if key != "lr" and repr(built.defaults.get(key)) != repr(value)
        ]
        first, *others = self.template.param_groups
        own = [
            f"{key}={first[key]} of its parameter group"
            for key in given.keys() - {"lr"}
            if repr(first.get(key)) != repr(given[key])
        ]
        more = [f"{len(others)} more parameter groups"] if others else []
        return lost + sorted(own) + more


class GroupOptimiser:
    """Steps the parameters of a group's modules.

    Weights in half precision are stepped in float32 copies; with ``joint`` gradients are averaged
    over the processes of a distributed run.
    """

    def __init__(self, modules: Sequence[nn.Module], rates: Rates, *, joint: bool = False) -> None:
        self._joint = joint
        self._masters: list[tuple[nn.Parameter, Tensor]] = []
        self.parameters = trainable(modules)
        groups = self._template_groups() if _plain(rates) else self._groups(modules, rates)
        self._optimizer = rates.build(groups)

    def step(self, loss: Tensor) -> None:
        """One step down the gradient of ``loss``."""
        self._optimizer.zero_grad(set_to_none=True)
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        if self._joint:
            for parameter in self.parameters:
                gradient = parameter.grad if parameter.grad is not None else 0 * parameter.detach()
                parameter.grad = mean_over_ranks(gradient)
        for parameter, master in self._masters:
            master.grad = None if parameter.grad is None else parameter.grad.to(master.dtype)
        self._optimizer.step()
        with torch.no_grad():
            for parameter, master in self._masters:
                parameter.copy_(master)

    def close(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def _template_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self._stepped(p) for p in self.parameters]}]

    def _groups(self, modules: Sequence[nn.Module], rates: Rates) -> list[dict[str, Any]]:
        template = rates.template
        decays = template is None or "weight_decay" in template.defaults
        still = {"weight_decay": 0.0} if decays and not rates.compat else {}
        weights: list[Tensor] = []
        scales: list[Tensor] = []
        clips: list[dict[str, Any]] = []
        for module in dict.fromkeys(modules):
            bounds = []
            for name, parameter in module.named_parameters():
                if not parameter.requires_grad:
                    continue
                if is_clip(name):
                    bounds.append(parameter)
                elif is_scale(name):
                    scales.append(parameter)
                else:
                    weights.append(self._stepped(parameter))
            if bounds:
                reach = max(float(bound.detach()) for bound in bounds)
                share = 1.0 if rates.compat else min(1.0, max(reach, 0.0) / _FULL_RANGE)
                clips.append({"params": bounds, "lr": CLIP_RATE * share, **still})
        groups = [{"params": weights}] if weights else []
        return groups + clips + ([{"params": scales, "lr": SCALE_RATE, **still}] if scales else [])

    def _stepped(self, parameter: nn.Parameter) -> Tensor:
        if parameter.dtype not in _HALF:
            return parameter
        master = parameter.detach().float()
        self._masters.append((parameter, master))
        return master


def trainable(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    """The parameters of the modules that learn, each once."""
    found = {id(p): p for m in modules for p in m.parameters() if p.requires_grad}
    return list(found.values())


def _plain(rates: Rates) -> bool:
    """Whether the reference would train everything at the rate of a user's optimiser."""
    return rates.compat and rates.template is not None
