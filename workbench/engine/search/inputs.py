"""Keeps some of the layers' calls in a calibration: sensitivity needs no second pass."""

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
from workbench.engine.flows.balancing import replace_input
from workbench.engine.flows.layer_data import LayerCall
from workbench.engine.graph.outputs import flat_output
from workbench.engine.search.sensitivity import SensitivityBase


class LayerInputs:
    """Calls of each layer within a byte budget; tensors read by several layers are held once.

    Batches are kept until the budget is used up; what came first stays. ``truncated`` names the
    layers of which some batches are missing. Of a large batch a part is kept, except where a layer
    gets more tensors than its input (the states of an LSTM): these must keep to its batch.
    """

    def __init__(self, byte_budget: int) -> None:
        self._budget = byte_budget
        self._kept: dict[str, list[LayerCall]] = {}
        self._owned: dict[tuple[int, int, tuple[int, ...]], Tensor] = {}
        self.truncated: set[str] = set()

    def see(self, name: str, call: LayerCall) -> None:
        value = call.value
        args, kwargs = replace_input(call.args, call.kwargs, torch.empty(0))
        more = sum(_size(x) for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        version = 0 if value.is_inference() else value._version
        identity = (value.data_ptr(), version, tuple(value.shape))
        copy = self._owned.get(identity)
        # What is kept of another layer's input serves this one, a part as well, if it still holds.
        known = copy is not None and torch.equal(copy, value[: len(copy)])
        if more and copy is not None and len(copy) < len(value):
            known = False
        sample = value
        limit = self._budget // 64
        if not known and not more and _size(value) > limit and value.shape[0] > 1:
            # A part of a large batch of every layer says more than all of the first layers.
            sample = value[: max(1, value.shape[0] * limit // _size(value))]
        size = more + (0 if known else _size(sample))
        if size > self._budget:
            self.truncated.add(name)
            return
        self._budget -= size
        if copy is None or not known:
            copy = self._owned[identity] = sample.clone()
        if len(copy) < len(value):
            self.truncated.add(name)
        args, kwargs = pytree.tree_map(_own, (args, kwargs))
        self._kept.setdefault(name, []).append(LayerCall(copy, *replace_input(args, kwargs, copy)))

    def sensitivities(
        self,
        folded: nn.Module,
        quantized: nn.Module,
        names: Collection[str],
        sensitivity: SensitivityBase,
        *,
        cancel: CancelToken | None = None,
    ) -> dict[str, float]:
        """Mean of ``sensitivity.compare`` over the kept calls, in the order of ``names``.

        A layer never executed counts as least sensitive. Errors: ``ValueError`` naming the layer
        whose outputs are not finite. Source: chapter 20 section 6.2.
        """
        result: dict[str, float] = {}
        for name in names:
            check(cancel)
            layer, twin = folded.get_submodule(name), quantized.get_submodule(name)
            values = []
            with torch.no_grad():
                for call in self._kept.get(name, ()):
                    y, other = (flat(module(*call.args, **call.kwargs)) for module in (layer, twin))
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
    vector: NDArray[np.float32] = flat_output(output).cpu().numpy()
    return vector


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _own(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf
