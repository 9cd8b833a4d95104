"""Layer inputs on disk, on request, in the layout that the reference's users know.

Source: specification chapter 20 section 6.1.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch

from workbench.engine.flows.layer_data import LayerCall

_INDEX = {torch.float32: 0, torch.float64: 1, torch.int32: 2, torch.float16: 3}


class InputDump:
    """Writes ``<layer>_activation_batch<k>.bin`` for the first ``batches`` calls of each layer.

    Little-endian: float32 index of the dtype (0 float32, 1 float64, 2 int32, 3 float16), float32
    number of dimensions, float32 dimensions, then the data. Other dtypes are written as float32.
    """

    def __init__(self, folder: Path, batches: int) -> None:
        self._folder, self._batches = folder, batches
        self._count: Counter[str] = Counter()

    def see(self, name: str, call: LayerCall) -> None:
        if self._count[name] >= self._batches:
            return
        self._count[name] += 1
        data = call.value.detach().cpu().contiguous()
        if data.dtype not in _INDEX:
            data = data.float()
        head = np.array([_INDEX[data.dtype], data.dim(), *data.shape], "<f4")
        path = self._folder / f"{name}_activation_batch{self._count[name]}.bin"
        path.write_bytes(head.tobytes() + data.numpy().tobytes())
