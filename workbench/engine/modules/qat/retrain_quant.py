"""The wrapper that stands at a trained layer's path in a graph-mode model.

Source: specification chapter 30 sections 4.1, 4.2 and 5.6.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.errors import WrongState
from workbench.engine.modules.qat.comp_module import CompModule, Factors

_OF_THE_REFERENCE = ("scale_w", "offset_w", "record_module.quant_layer_num")
"""State that its checkpoints hold beside ours; all of it is computed when a record is written."""


class RetrainQuant(nn.Module):
    """The quantised layer, and the batch norm that will be folded into it.

    The batch norm is trained unfolded, after the convolution with the quantised unfolded weight.
    Attributes of the original layer can be read here (``out_channels``, ``weight``, ...).
    """

    workbench_wrapper = True

    quant_module: CompModule
    bn_module: nn.modules.batchnorm._BatchNorm | None

    def __init__(self, quant_module: CompModule, bn_module: nn.Module | None = None) -> None:
        super().__init__()
        self.quant_module = quant_module
        self.register_module("bn_module", bn_module)
        self.training = quant_module.training

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.bn_module is None:
            return self.quant_module(input, *args, **kwargs)
        gamma = self.bn_module.weight.detach()
        sign = torch.where(gamma < 0, -1.0, 1.0)
        return self.bn_module(self.quant_module(input, *args, sign=sign, **kwargs))

    @property
    def original(self) -> nn.Module:
        """The float layer, over the parameters that are trained."""
        return self.quant_module.replaced_module

    def is_initialised(self) -> bool:
        """Whether the clip bounds were found, given or loaded."""
        return self.quant_module.is_initialised()

    def batches_seen(self) -> int:
        """How many batches the search for the clip bounds has seen; 0 when it is over."""
        return self.quant_module.batches_seen()

    @torch.no_grad()
    def factors(self) -> Factors:
        """What a record and a float file need now, the batch norm's statistics folded in."""
        norm = self.bn_module
        if norm is None:
            return self.quant_module.factors()
        if norm.running_var is None:
            raise WrongState(
                "its batch norm has no running statistics any more",
                where=f"layer {self.quant_module.layer_name}",
            )
        turned = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        return self.quant_module.factors(turned)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            modules = self.__dict__.get("_modules", {})
            # "original" itself: a property that fails is asked for here again.
            if name.startswith("_") or name == "original" or "quant_module" not in modules:
                raise
            return getattr(self.original, name)

    def _replicate_for_data_parallel(self) -> nn.Module:
        raise data_parallel_refused(f"layer {self.quant_module.layer_name}")

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in _OF_THE_REFERENCE:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def data_parallel_refused(where: str) -> WrongState:
    return WrongState(
        "torch.nn.DataParallel cannot train clip bounds: its replicas' changes are lost",
        where=where,
        hint="Use torch.nn.parallel.DistributedDataParallel, one process a device.",
    )
