"""Sensitivity seen at the network's output: only one layer quantised at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from workbench.engine.errors import WrongValue
from workbench.engine.events import CancelToken, Progress, check, emit
from workbench.engine.search.inputs import flat
from workbench.engine.search.models import Factors
from workbench.engine.search.setup import SearchSetup


class ModelInputs:
    """The arguments of the first calls of a model, within a byte budget but at least one."""

    def __init__(self, byte_budget: int) -> None:
        self._budget = byte_budget
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def watch(self, model: nn.Module) -> RemovableHandle:
        return model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        def copy(leaf: Any) -> Any:
            return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf

        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        size = sum(x.numel() * x.element_size() for x in tensors)
        if not self.calls or size <= self._budget:
            self._budget -= size
            self.calls.append(pytree.tree_map(copy, (args, kwargs)))


def end_to_end(
    setup: SearchSetup, factors: Factors, inputs: ModelInputs, names: Sequence[str]
) -> dict[str, float]:
    """Mean over the kept calls of how similar the outputs stay with this layer alone quantised.

    Several outputs count as one vector. Errors: ``ValueError`` naming the layer for NaN.
    Source: chapter 20 section 9, row "Sensitivity is local only".
    """
    cancel: CancelToken | None = setup.cancel
    wanted = [_outputs(factors.folded, call) for call in inputs.calls]
    result: dict[str, float] = {}
    for done, name in enumerate(names):
        check(cancel)
        module = factors.quantized([name])
        pairs = zip(wanted, inputs.calls, strict=True)
        values = [float(setup.sensitivity.compare(y, _outputs(module, call))) for y, call in pairs]
        result[name] = sum(values) / len(values)
        if result[name] != result[name]:
            raise WrongValue("the sensitivity is NaN", where=f"layer {name}")
        emit(setup.on_event, Progress("sensitivity", done + 1, len(names)))
    return result


def _outputs(
    module: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]]
) -> NDArray[np.float32]:
    args, kwargs = call
    with torch.no_grad():
        return flat(module(*args, **kwargs))
