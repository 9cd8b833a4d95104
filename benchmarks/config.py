"""The configuration of a model with 1,000 layers, from defaults and from a text config."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.harness import Row, report, threads
from workbench.engine import create_quant_config

BLOCKS = 333
TEXT = """
batch_num: 4
common_config { hfmg_quantize { num_of_bins: 2048 } arq_quantize { channel_wise: true } }
override_layer_types { layer_type: "Conv2d" calibration_config { arq_quantize { quant_bits: 7 } } }
"""


class Block(nn.Module):
    """Three layers and a gate: 13 operators, small enough that only their number counts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 1)
        self.gate = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(torch.relu(self.norm(self.first(x))))
        gate = torch.sigmoid(self.gate(y.mean((2, 3))))
        return torch.relu(x + y * gate[:, :, None, None])


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *(Block(8) for _ in range(BLOCKS))).eval()
    image = torch.randn(1, 3, 10, 10)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "simple.cfg"
        text.write_text(TEXT)
        for words, cfg in (("defaults", None), ("text config", str(text))):
            written = Path(folder) / f"{words}.json"
            start = time.perf_counter()
            create_quant_config(str(written), model, (image,), config_defination=cfg)
            seconds = time.perf_counter() - start
            layers = sum(
                isinstance(value, dict) for value in json.loads(written.read_text()).values()
            )
            figure = f"create_quant_config, {layers:,} layers, {words}"
            rows.append(Row(figure, threads(), seconds, "s", 10.0))
    report(rows)


if __name__ == "__main__":
    torch.set_num_threads(threads())
    main()
