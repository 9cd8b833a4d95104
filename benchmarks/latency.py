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

from benchmarks.harness import Row, ratio, report, settled, threads
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


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "uint8 × int8 per channel": {
        "per_channel": True,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
    },
}
"""Of ``quantize_static``. The second saturates without VNNI: faster, less accurate."""


def measure(title: str, model: torch.nn.Module, batch: torch.Tensor) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        paths = [str(base / n) for n in ("config.json", "modified.onnx", "record.txt", "net")]
        create_quant_config(paths[0], model, (batch,))
        quantize_model(paths[0], paths[1], paths[2], model, (batch,))(batch)
        save_model(paths[1], paths[2], paths[3])
        float_path, prepared = (str(base / f"{n}.onnx") for n in ("float", "prepared"))
        torch.onnx.export(model, (batch,), float_path, dynamo=True, verbose=False)
        quant_pre_process(float_path, prepared)
        plain, ours = session(float_path), session(f"{paths[3]}_qdq_model.onnx")
        name, our_name = plain.get_inputs()[0].name, ours.get_inputs()[0].name
        feed, our_feed = {name: batch.numpy()}, {our_name: batch.numpy()}
        wanted = plain.run(None, feed)[0]

        def error(got: np.ndarray[Any, Any]) -> float:
            return float(10 * np.log10((wanted**2).sum() / ((got - wanted) ** 2).sum()))

        def run_ours() -> Any:
            return ours.run(None, our_feed)[0]

        for label, settings in SETTINGS.items():
            theirs = str(base / "theirs.onnx")
            quantize_static(
                prepared,
                theirs,
                Reader(name, batch.numpy()),
                quant_format=QuantFormat.QDQ,
                **settings,
            )
            other = session(theirs)

            def run_other(other: ort.InferenceSession = other) -> Any:
                return other.run(None, feed)[0]

            value, mine, its = ratio(run_ours, run_other, repeats=25)
            note = f"{mine * 1e3:.2f} / {its * 1e3:.2f} ms"
            quality = f"SQNR {error(run_ours()):.1f} / {error(run_other()):.1f} dB"
            figure = f"QDQ ÷ quantize_static ({label}), {title}"
            target = 1.1 if label == "defaults" else 0.0
            rows.append(Row(figure, threads(), value, "×", target, f"{note}, {quality}"))
        value, _, flt = ratio(run_ours, lambda: plain.run(None, feed), repeats=25)
        figure = f"QDQ latency ÷ float, {title}"
        rows.append(Row(figure, threads(), value, "×", 0.0, f"float {flt * 1e3:.2f} ms"))
    return rows


def main() -> None:
    torch.manual_seed(0)
    example = zoo.load("digits-resnet")
    batch = torch.randn(1, 3, 224, 224)
    rows = measure("digits-resnet, batch 32", example.model, example.data.calibration[:32])
    report(rows + measure("ResNet-18, batch 1", settled(resnet18(), batch), batch))


if __name__ == "__main__":
    torch.set_num_threads(threads())
    main()
