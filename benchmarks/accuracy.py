"""INT8 of the examples: what each way to choose the activation scales loses of the metric.

Weights are ARQ throughout; min-max and the 99.99th percentile are the usual baselines and take the
place of the scales that calibration found.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from benchmarks.harness import Row, report, threads
from workbench import zoo
from workbench.engine.algorithms.minmax import MinMaxObserver
from workbench.engine.export.torch_module import to_fake_quant
from workbench.engine.files.config import QuantConfig, default_config
from workbench.engine.files.record import Record
from workbench.engine.flows.calibration import Calibration
from workbench.engine.flows.layer_data import LayerCall
from workbench.engine.flows.ptq import calibrate
from workbench.engine.graph.capture import Captured, capture
from workbench.zoo.score import psnr, top1

PERCENTILE = 99.99


class Baselines:
    """Sees every layer's input and keeps what the two baselines need."""

    def __init__(self) -> None:
        self.whole: dict[str, MinMaxObserver] = {}
        self.clipped: dict[str, MinMaxObserver] = {}

    def see(self, name: str, call: LayerCall) -> None:
        values = call.value.detach().float().reshape(-1)
        ends = np.percentile(values.numpy(), [100 - PERCENTILE, PERCENTILE])
        for kept, x in ((self.whole, values), (self.clipped, torch.from_numpy(ends).float())):
            kept.setdefault(name, MinMaxObserver(8, True)).update(x)

    @staticmethod
    def record(calibrated: Record, kept: dict[str, MinMaxObserver]) -> Record:
        layers = {}
        for name, entry in calibrated.layers.items():
            found = kept[name].result()
            layers[name] = replace(entry, scale_d=found.scale, offset_d=found.offset)
        return replace(calibrated, layers=layers)


def with_algorithm(config: QuantConfig, algorithm: str) -> QuantConfig:
    return replace(
        config,
        layers={
            name: replace(layer, activation=replace(layer.activation, act_algo=algorithm))
            for name, layer in config.layers.items()
        },
    )


def rows_of(name: str) -> list[Row]:
    example = zoo.load(name)
    data = example.data
    score = {"top1": top1, "psnr": psnr}[example.metric]
    share = example.metric == "top1"
    captured: Captured = capture(example.model, zoo.example_input(name))
    config = default_config(captured.layers)
    baselines = Baselines()
    found: Calibration = calibrate(
        captured, config, [data.calibration], on_layer_input=baselines.see
    )
    record = found.finalize()
    hfmg = calibrate(captured, with_algorithm(config, "hfmg"), [data.calibration]).finalize()
    records = {
        "IFMR": record,
        "HFMG": hfmg,
        "min-max": baselines.record(record, baselines.whole),
        f"percentile {PERCENTILE}": baselines.record(record, baselines.clipped),
    }
    plain = score(example.model, data)
    rows = []
    for title, chosen in records.items():
        quantised = score(to_fake_quant(found.folded, chosen), data)
        loss = (plain - quantised) * (100 if share else 1)
        note = f"float {plain:.2%} → {quantised:.2%}" if share else f"{plain:.2f} → {quantised:.2f}"
        unit = "points" if share else "dB"
        rows.append(Row(f"INT8 loss, {name}, {title}", threads(), loss, unit, None, note))
    return rows


def main() -> None:
    report([row for name in zoo.names() for row in rows_of(name)])


if __name__ == "__main__":
    torch.set_num_threads(threads())
    main()
