"""What single operators share: a torch layer with quantisers, made alone or from a float layer.

Source: specification chapter 30 section 9, S1 to S9. The parameters keep their names and their
float values, and no graph of the model is needed: any model may hold such layers.
"""

from __future__ import annotations

import copy as copying
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from workbench.engine.errors import WrongState, WrongType, WrongValue
from workbench.engine.modules.qat.onnx_nodes import is_exporting
from workbench.engine.modules.qat.operator_config import (
    Allowed,
    OperatorConfig,
    read_operator_config,
)
from workbench.engine.modules.qat.quantisers import QuantisingModule

_COUNTED = 100


class UnfitLayer(WrongType, WrongState):
    """What ``from_float`` was given is not the operator's torch layer."""


class UnfitSetting(WrongValue, WrongState):
    """A layer has a setting that its operator does not support."""


class UnfitInput(WrongType, WrongValue):
    """An input of a dtype that cannot be quantised."""


class QATOperator(QuantisingModule):
    """What all single operators share: ``config`` and the checks of an input.

    Until the first ``batch_num`` forwards have given it bounds an input stays as it is. Export with
    ``torch.onnx.export`` after ``eval()``: inputs and weights come out as Q/DQ pairs; 16-bit inputs
    need ``dynamo=True, opset_version=21``.
    """

    allowed: ClassVar[Allowed] = Allowed()
    ranks: ClassVar[Sequence[int]] = ()
    """Allowed numbers of axes of an input; empty: any."""

    enabled: bool
    cur_batch: Tensor

    def _prepare(
        self,
        config: Mapping[str, Any] | OperatorConfig | None,
        device: torch.device | None = None,
    ) -> None:
        """Read the configuration, refuse what cannot be quantised, add the quantisers."""
        where = type(self).__name__
        if isinstance(config, OperatorConfig):
            read = config
        else:
            read = read_operator_config(config, self.allowed, where=where)
        self.enabled = read.enabled
        if not read.enabled:
            return
        obstacle = self._obstacle()
        if obstacle:
            raise UnfitSetting(obstacle, where=where, hint="Or set retrain_enable to False.")
        device = next((p.device for p in self.parameters()), device)
        self._add_quantisers(read, device)
        self.register_buffer("cur_batch", torch.zeros((), dtype=torch.int64, device=device))

    def _add_quantisers(self, config: OperatorConfig, device: torch.device | None) -> None:
        raise NotImplementedError

    def _obstacle(self) -> str:
        """Why this layer cannot be quantised; empty when it can."""
        return ""

    def _check_input(self, x: Tensor) -> None:
        where = self._where() or type(self).__name__
        if not x.is_floating_point():
            raise UnfitInput(f"an input of dtype {x.dtype}; allowed: floating point", where=where)
        if self.ranks and x.dim() not in self.ranks:
            allowed = " or ".join(str(rank) for rank in self.ranks)
            raise WrongState(f"an input with {x.dim()} axes; allowed: {allowed}", where=where)

    @torch.no_grad()
    def _count(self) -> None:
        if not is_exporting():
            self.cur_batch.add_(1).clamp_(max=_COUNTED)


class LayerOperator(QATOperator):
    """A single operator that takes the place of a torch layer, of class ``float_class``."""

    float_class: ClassVar[type[nn.Module]]
    weights: ClassVar[Sequence[str]] = ("weight",)

    @classmethod
    def from_float(
        cls,
        mod: nn.Module,
        config: Mapping[str, Any] | OperatorConfig | None = None,
        *,
        copy: bool = False,
    ) -> Self:
        """The operator that does what ``mod`` does, on the same device, in the same mode.

        ``config``: see section 9.2; a flow that has settings of its own gives an
        ``OperatorConfig``. The parameters are those of ``mod`` itself; with ``copy`` they
        are clones. ``mod`` is not changed. Raises an error that is both ``TypeError`` and
        ``RuntimeError`` for anything but the torch layer, and what the constructor raises.
        """
        where = f"{cls.__name__}.from_float"
        if not isinstance(mod, cls.float_class) or isinstance(mod, QuantisingModule):
            raise UnfitLayer(
                f"mod is a {type(mod).__name__}; allowed: torch.nn.{cls.float_class.__name__}",
                where=where,
            )
        if type(mod).forward is not cls.float_class.forward:
            raise UnfitLayer(
                f"mod is a {type(mod).__name__} with a forward of its own, which would be lost",
                where=where,
            )
        if not set(cls.weights) <= set(mod._parameters):
            raise UnfitLayer(
                "mod computes its weight in every forward (weight_norm, a parametrisation)",
                where=where,
                hint="Remove it first, so that the weight is a parameter.",
            )
        if any(is_lazy(parameter) for parameter in mod.parameters()):
            raise UnfitLayer(
                "mod does not know its shape yet", where=where, hint="Run the model once first."
            )
        operator = cls.__new__(cls)
        vars(operator).update(_shallow(mod))
        if copy:
            for name, parameter in mod._parameters.items():
                if parameter is not None:
                    clone = parameter.detach().clone()
                    setattr(operator, name, nn.Parameter(clone, parameter.requires_grad))
        operator._prepare(config)
        return operator


def _shallow(module: nn.Module) -> dict[str, Any]:
    """The attributes of ``module`` with dictionaries and lists of their own; tensors are shared."""
    own = vars(module).items()
    return {k: copying.copy(v) if isinstance(v, dict | list | set) else v for k, v in own}
