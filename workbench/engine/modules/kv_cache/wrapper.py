"""A Linear layer whose output is watched on its way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from workbench.engine.events import CancelToken, check
from workbench.engine.files.record import KVCacheRecord
from workbench.engine.modules.kv_cache.observation import Observation

Recorder = Callable[[str, KVCacheRecord], None]


class KVCacheQuant(nn.Module):
    """Computes ``ori_module`` without gradients and shows its output to ``cali_module``.

    ``record_module`` is called with the layer's name and its factors when they are found. Other
    attributes are those of the layer. Chapter 25 section 16.
    """

    workbench_wrapper = True  # no model to start a flow from

    def __init__(
        self,
        ori_module: nn.Module,
        cali_module: Observation,
        record: Recorder,
        cancel: CancelToken | None = None,
    ) -> None:
        super().__init__()
        self.ori_module = ori_module
        self.cali_module = cali_module
        self.record_module = record
        self._cancel = cancel

    @property
    def cur_batch(self) -> int:
        """How many calls were observed."""
        return self.cali_module.cur_batch

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        check(self._cancel)
        with torch.no_grad():
            output = self.ori_module(*args, **kwargs)
        found = self.cali_module.watch(output)
        if found is not None:
            self.record_module(self.cali_module.layer_name, found)
        return output

    def __getattr__(self, name: str) -> Any:
        # Code around a layer reads its weight or its width.
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "ori_module":
                raise
            return getattr(self.ori_module, name)
