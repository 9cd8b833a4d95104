"""One model with every single QAT operator on an input of its own, and its ONNX files."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from workbench.engine.modules.qat.convolutions import (
    Conv1dQAT,
    Conv2dQAT,
    Conv3dQAT,
    ConvTranspose1dQAT,
    ConvTranspose2dQAT,
)
from workbench.engine.modules.qat.linear import LinearQAT, MatMulQAT
from workbench.engine.modules.qat.recurrent import GRUQAT, LSTMQAT

PER_TENSOR = {"retrain_weight_config": {"channel_wise": False}}
ULQ = {"retrain_weight_config": {"weights_retrain_algo": "ulq_retrain"}}
FIXED = {"retrain_data_config": {"fixed_min": True}}

SHAPES: dict[str, Sequence[tuple[int, ...]]] = {
    "conv1d": [(2, 4, 7)],
    "conv2d": [(2, 4, 6, 6)],
    "per_tensor": [(2, 4, 6, 6)],
    "conv3d": [(1, 2, 4, 4, 4)],
    "deconv1d": [(2, 4, 5)],
    "deconv2d": [(2, 4, 4, 4)],
    "linear2": [(5, 6)],
    "linear3": [(2, 3, 6)],
    "matmul": [(2, 3, 4), (2, 4, 5)],
}


class Operators(nn.Module):
    """No operator reads another's output, so that none hides an error of another."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(
            {
                "conv1d": Conv1dQAT(4, 6, 3, groups=2),
                "conv2d": Conv2dQAT(4, 6, 3, padding=1, config=ULQ),
                "per_tensor": Conv2dQAT(4, 6, 1, bias=False, config=PER_TENSOR),
                "conv3d": Conv3dQAT(2, 3, 2, config=FIXED),
                "deconv1d": ConvTranspose1dQAT(4, 6, 3, stride=2, output_padding=1),
                "deconv2d": ConvTranspose2dQAT(4, 6, 2, groups=2),
                "linear2": LinearQAT(6, 3),
                "linear3": LinearQAT(6, 3),
                "matmul": MatMulQAT(),
            }
        )

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = iter(inputs)
        return tuple(
            self.parts[name](*(next(given) for _ in shapes)) for name, shapes in SHAPES.items()
        )


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = LSTMQAT(3, 4, batch_first=True)
        self.gru = GRUQAT(3, 4, config=PER_TENSOR | ULQ)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        out, (last, cell) = self.lstm(x, (h, c))
        return out, last, cell, *self.gru(x.transpose(0, 1), c)


@dataclass(frozen=True)
class Exported:
    file: Path
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def run(self, file: Path | None = None) -> list[np.ndarray]:
        """What ONNX Runtime computes, without rewriting the graph."""
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(str(file or self.file), options)
        names = [value.name for value in session.get_inputs()]
        feed = {n: t.numpy() for n, t in zip(names, self.inputs, strict=True)}
        return list(session.run(None, feed))


def export(model: nn.Module, inputs: tuple[Tensor, ...], dynamo: bool, opset: int) -> Exported:
    """Find the bounds, train nothing, export."""
    with torch.no_grad():
        for _ in range(2):
            model(*inputs)
        model.eval()
        outputs = tuple(model(*inputs))
    file = Path(tempfile.mkdtemp()) / "model.onnx"
    torch.onnx.export(
        model, inputs, file, dynamo=dynamo, opset_version=opset, verbose=False, external_data=False
    )
    return Exported(file, inputs, outputs)


@cache
def operators(dynamo: bool) -> Exported:
    torch.manual_seed(0)
    inputs = tuple(torch.randn(shape) for shapes in SHAPES.values() for shape in shapes)
    return export(Operators(), inputs, dynamo, 18)


@cache
def recurrent(dynamo: bool) -> Exported:
    torch.manual_seed(0)
    inputs = (torch.randn(2, 1, 3), torch.randn(1, 2, 4).tanh(), torch.randn(1, 2, 4))
    return export(Recurrent(), inputs, dynamo, 18)
