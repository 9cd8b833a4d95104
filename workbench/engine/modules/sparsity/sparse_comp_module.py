"""A layer with 2:4 sparsity and quantisers; the mask comes first."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from workbench.engine.modules.qat.comp_module import CompModule
from workbench.engine.modules.qat.quantisers import ActivationSettings, WeightSettings
from workbench.engine.modules.sparsity.masked import MaskedWeight
from workbench.engine.modules.sparsity.sparse_module import SparseModule


class SparseCompModule(MaskedWeight, CompModule):
    """What ``CompModule`` does, with the masked weight in the weight's place.

    Takes over the layer and the mask of a ``SparseModule``. Source: specification chapter 30
    section 11.2.
    """

    def __init__(
        self,
        sparse: SparseModule,
        name: str,
        activation: ActivationSettings,
        weight: WeightSettings,
    ) -> None:
        super().__init__(sparse.replaced_module, name, activation, weight)
        self.add_mask(sparse.update_freq, sparse.wts_mask if sparse._given else None)

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.count_forward()
        return super().forward(input, *args, **kwargs)

    def _weight(self) -> Tensor:
        # The base class asks for the weight before there is a mask.
        return self.masked_weight() if "wts_mask" in self._buffers else self.dense_weight()
