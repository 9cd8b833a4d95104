"""A layer with 2:4 sparsity; it takes the layer's place while the model is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.modules.sparsity.masked import MaskedWeight

_OF_THE_REFERENCE = ("cur_batch", "s_rec_flag", "wts_scales", "wts_offsets")
"""State that its checkpoints hold beside ours."""


class SparseModule(MaskedWeight):
    """A Linear, Conv2d or ConvTranspose2d that computes with the masked weight.

    ``replaced_module`` is the original layer; its parameters are the trained ones. Attributes of
    the layer can be read here (``out_channels``, ``weight``, ...).
    """

    workbench_wrapper = True

    def __init__(self, layer: nn.Module, update_freq: int = 0, mask: Tensor | None = None) -> None:
        super().__init__()
        self.replaced_module = layer
        self.add_mask(update_freq, mask)
        self.train(layer.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.count_forward()
        # The layer's own forward: its hooks, arguments and arithmetic stay as they are.
        return torch.func.functional_call(
            self.replaced_module, {"weight": self.masked_weight()}, args, kwargs
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in _OF_THE_REFERENCE:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            modules = self.__dict__.get("_modules", {})
            if name.startswith("_") or "replaced_module" not in modules:
                raise
            return getattr(modules["replaced_module"], name)
