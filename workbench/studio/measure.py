"""Exported files in ONNX Runtime: their metric, and how fast they are beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from workbench.engine.events import CancelToken
from workbench.engine.export.segments import array_of
from workbench.engine.export.timing import time_in_turn


class OrtModel:
    """An ONNX file that is called like a module: tensors in, tensor or tuple out.

    A file with a fixed batch takes shorter batches too: they are filled up and cut again.
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs = self._session.get_inputs()

    def feed(self, inputs: Sequence[Tensor]) -> dict[str, Any]:
        return {
            meta.name: _fixed(array_of(x, meta.type), meta.shape)
            for meta, x in zip(self._inputs, inputs, strict=False)
        }

    def run(self, feed: Mapping[str, Any]) -> list[Any]:
        return list(self._session.run(None, dict(feed)))

    def __call__(self, *inputs: Tensor) -> Any:
        count = len(inputs[0]) if inputs and inputs[0].dim() else None
        feed = self.feed(inputs)
        padded = {len(value) for value in feed.values() if value.ndim}
        outputs = [torch.from_numpy(np.asarray(value)) for value in self.run(feed)]
        if count is not None and count not in padded:
            outputs = [value[:count] for value in outputs]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _fixed(value: Any, shape: Sequence[Any]) -> Any:
    if value.ndim == 0 or not shape or not isinstance(shape[0], int) or len(value) >= shape[0]:
        return value
    missing = shape[0] - len(value)
    return np.concatenate([value, np.repeat(value[-1:], missing, axis=0)])


def latencies(
    models: Mapping[str, OrtModel], inputs: Sequence[Tensor], *, cancel: CancelToken
) -> dict[str, tuple[float, float]]:
    """Median and interquartile range in milliseconds for one batch, file after file in turn."""
    feeds = {kind: model.feed(inputs) for kind, model in models.items()}
    runs = {kind: partial(model.run, feeds[kind]) for kind, model in models.items()}
    return time_in_turn(runs, cancel=cancel)


def size_on_disk(path: Path) -> int:
    """Bytes of an ONNX file together with its external data."""
    return path.stat().st_size + sum(
        other.stat().st_size
        for other in path.parent.glob(f"{_escape(path.stem)}*")
        if other.name != path.name and other.suffix != ".onnx" and other.is_file()
    )


def _escape(text: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)
