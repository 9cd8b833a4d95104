"""Keeps some of the layer inputs of a calibration: sensitivity needs no second pass."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from workbench.engine.errors import WrongValue
from workbench.engine.events import CancelToken, check
from workbench.engine.search.sensitivity import SensitivityBase


class LayerInputs:
    """Inputs of each layer within a byte budget; tensors read by several layers are held once.

    Batches are kept until the budget is used up; what came first stays. ``truncated`` names the
    layers of which some batches are missing.
    """

    def __init__(self, byte_budget: int) -> None:
        self._budget = byte_budget
        self._kept: dict[str, list[Tensor]] = {}
        self._owned: dict[tuple[int, int, tuple[int, ...]], Tensor] = {}
        self.truncated: set[str] = set()

    def see(self, name: str, value: Tensor) -> None:
        version = 0 if value.is_inference() else value._version
        identity = (value.data_ptr(), version, tuple(value.shape))
        copy = self._owned.get(identity)
        if copy is None or not torch.equal(copy, value):
            limit = self._budget // 64
            sample = value
            size = value.numel() * value.element_size()
            if size > limit and value.shape[0] > 1:
                # A part of a large batch of every layer says more than all of the first layers.
                count = max(1, value.shape[0] * limit // size)
                sample = value[:count]
                size = sample.numel() * sample.element_size()
                self.truncated.add(name)
            if size > self._budget:
                self.truncated.add(name)
                return
            self._budget -= size
            copy = sample.clone()
            self._owned[identity] = copy
        self._kept.setdefault(name, []).append(copy)

    def sensitivities(
        self,
        folded: nn.Module,
        quantized: nn.Module,
        names: Collection[str],
        sensitivity: SensitivityBase,
        *,
        cancel: CancelToken | None = None,
    ) -> dict[str, float]:
        """Mean of ``sensitivity.compare`` over the kept batches, in the order of ``names``.

        A layer never executed counts as least sensitive. Errors: ``ValueError`` naming the layer
        whose outputs are not finite. Source: chapter 20 section 6.2.
        """
        result: dict[str, float] = {}
        for name in names:
            check(cancel)
            layer, twin = folded.get_submodule(name), quantized.get_submodule(name)
            values = []
            with torch.no_grad():
                for x in self._kept.get(name, ()):
                    y, other = flat(layer(x)), flat(twin(x))
                    value = float(sensitivity.compare(y, other))
                    if value != value:
                        raise WrongValue("the sensitivity is NaN", where=f"layer {name}")
                    values.append(value)
            if not values:
                result[name] = 1.0 if sensitivity.larger_is_better else 0.0
            else:
                result[name] = sum(values) / len(values)
        return result


def flat(output: Any) -> NDArray[np.float32]:
    """Every tensor of an output (a recurrent layer has several) as one float32 vector."""
    leaves = (x for x in pytree.tree_leaves(output) if isinstance(x, Tensor))
    return np.concatenate([x.reshape(-1).float().cpu().numpy() for x in leaves])
