"""What layers with 2:4 sparsity share: the mask of their weight, chosen anew while they train."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.algorithms.selective_prune import selective_mask
from workbench.engine.errors import WrongState
from workbench.engine.modules.qat.onnx_nodes import is_exporting

MASK, COUNT = "wts_mask", "prune_cur_batch"


class MaskedWeight(nn.Module):
    """Mixin, before the wrapper's own class, for one that holds the layer as ``replaced_module``.

    ``wts_mask``: bool, of the weight's shape. It is there from the start, is chosen anew in the
    first training forward (``update_freq`` 0) or in every ``update_freq``-th, and never in eval
    mode. ``prune_cur_batch`` (int64) counts training forwards. Masked weights keep their value and
    get a gradient of exactly 0, so they come back when what was kept has shrunk.

    Source: specification chapter 40 section 4.2, with D-7 to D-9 of its "Do better".
    """

    replaced_module: nn.Module
    wts_mask: Tensor
    prune_cur_batch: Tensor

    def add_mask(self, update_freq: int, mask: Tensor | None = None) -> None:
        """Register the state. ``mask`` is kept as long as no training forward chooses another."""
        self.update_freq = update_freq
        self.axis = 0 if isinstance(self.replaced_module, nn.ConvTranspose2d) else 1
        weight = self.dense_weight()
        self._given = mask is not None
        chosen = selective_mask(weight, self.axis) if mask is None else mask.to(weight.device)
        self.register_buffer(MASK, chosen)
        self.register_buffer(COUNT, torch.zeros((), dtype=torch.int64, device=weight.device))
        # Of the count only this decides; reading the tensor would wait for the device in every
        # forward, and a number that never repeats would have every one compiled anew.
        self._since_chosen = 0

    def dense_weight(self) -> Tensor:
        """The layer's weight as it is trained."""
        weight = self.replaced_module.weight
        if not isinstance(weight, Tensor):
            raise WrongState("has no weight", where=type(self.replaced_module).__name__)
        return weight

    def masked_weight(self) -> Tensor:
        """The weight that the layer computes with; its gradient is 0 where the mask is."""
        # On a CPU, forward and backward, half the time of a product with bools and a sixth of
        # torch.where.
        return self.dense_weight() * self.wts_mask.view(torch.int8)

    @property
    def density(self) -> float:
        """Share of the weights that stay: 0.5 where the input channels are a multiple of four."""
        return float(self.wts_mask.float().mean())

    @torch.no_grad()
    def choose_mask(self) -> None:
        """Take the mask of the weight as it is now."""
        self.wts_mask = selective_mask(self.dense_weight(), self.axis)

    @torch.no_grad()
    def count_forward(self) -> None:
        """To be called in every forward: counts it, and chooses a mask if it is time."""
        if not self.training or is_exporting():
            return
        if self._since_chosen == 0:
            self.choose_mask()
        self._since_chosen = self._position(self._since_chosen + 1)
        self.prune_cur_batch.add_(1)

    @torch.no_grad()
    def fold_mask(self) -> None:
        """Give the layer a new weight parameter with zeros where the mask has them."""
        weight = self.dense_weight()
        self.replaced_module.weight = nn.Parameter(
            self.masked_weight().detach(), weight.requires_grad
        )

    def _mask_of(self, loaded: Tensor | None) -> Tensor:
        """The mask for a checkpoint without one: the given one, else that of its weight."""
        if self._given or loaded is None or loaded.shape != self.wts_mask.shape:
            return self.wts_mask
        return selective_mask(loaded, self.axis)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        mask = state_dict.get(prefix + MASK)
        # The reference's mask is a float, and NaN until its first forward.
        if mask is None or bool(mask.isnan().any()):
            state_dict[prefix + MASK] = self._mask_of(
                state_dict.get(f"{prefix}replaced_module.weight")
            )
        else:
            state_dict[prefix + MASK] = mask.bool()
        count = state_dict.setdefault(prefix + COUNT, self.prune_cur_batch)
        if count.numel() == 1:
            state_dict[prefix + COUNT] = count.reshape(()).long()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._since_chosen = self._position(int(self.prune_cur_batch))

    def _position(self, count: int) -> int:
        """Training forwards since a mask was chosen; 0: the next one chooses."""
        return count % self.update_freq if self.update_freq else min(count, 1)
