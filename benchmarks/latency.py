"""Latency of the QDQ file in ONNX Runtime, beside ONNX Runtime's own quantiser."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.harness import Row, ratio, report, threads
from workbench import zoo
from workbench.engine import create_quant_config, quantize_model, save_model
from workbench.zoo.architectures import resnet18


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, batch: np.ndarray[Any, Any]) -> None:
        self.batches = iter([{name: batch}])

    def get_next(self) -> Any:
        return next(self.batches, None)


def session(path: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads()
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def measure(title: str, model: torch.nn.Module, batch: torch.Tensor) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        paths = [str(base / n) for n in ("config.json", "modified.onnx", "record.txt", "net")]
        create_quant_config(paths[0], model, (batch,))
        quantize_model(paths[0], paths[1], paths[2], model, (batch,))(batch)
        save_model(paths[1], paths[2], paths[3])
        float_path, prepared, theirs = (
            str(base / f"{n}.onnx") for n in ("float", "prepared", "theirs")
        )
        torch.onnx.export(model, (batch,), float_path, dynamo=True, verbose=False)
        quant_pre_process(float_path, prepared)
        plain = session(float_path)
        name = plain.get_inputs()[0].name
        quantize_static(
            prepared,
            theirs,
            Reader(name, batch.numpy()),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        ours, other = session(f"{paths[3]}_qdq_model.onnx"), session(theirs)
        feed = {name: batch.numpy()}
        our_feed = {ours.get_inputs()[0].name: batch.numpy()}
        against_other, mine, its = ratio(
            lambda: ours.run(None, our_feed), lambda: other.run(None, feed), repeats=15
        )
        against_float, _, flt = ratio(
            lambda: ours.run(None, our_feed), lambda: plain.run(None, feed), repeats=15
        )
        return [
            Row(
                f"QDQ latency ÷ ONNX Runtime's quantiser, {title}",
                threads(),
                against_other,
                "×",
                1.1,
                f"{mine * 1e3:.1f} ms / {its * 1e3:.1f} ms",
            ),
            Row(
                f"QDQ latency ÷ float, {title}",
                threads(),
                against_float,
                "×",
                0.0,
                f"float {flt * 1e3:.1f} ms",
            ),
        ]


def main() -> None:
    torch.manual_seed(0)
    example = zoo.load("digits-resnet")
    rows = measure("digits-resnet, batch 32", example.model, example.data.calibration[:32])
    rows += measure("ResNet-18, batch 1", resnet18().eval(), torch.randn(1, 3, 224, 224))
    report(rows)


if __name__ == "__main__":
    torch.set_num_threads(threads())
    main()
