"""Ranges of sums and concatenations, however a forward spells them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from workbench.engine.flows.ranges import RangeRecorder, TapWatch
from workbench.engine.graph.capture import capture
from workbench.engine.graph.clamped import Clamped
from workbench.engine.graph.pt2_model import load_exported_program


class Sums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.second = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = y + self.second(y)
        y = torch.add(y, x)
        y += x
        return torch.cat([y, x], 1)


def test_an_exported_program_has_the_ranges_of_its_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Sums().eval(), torch.randn(2, 1, 5, 5)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "sums.pt2")
    with torch.no_grad():
        y = model.first(x)
        one = y + model.second(y)
        two = one + x
        three = two + x
        want = [(t.min(), t.max()) for t in (one, two, three, torch.cat([three, x], 1))]
    for network in (model, load_exported_program(tmp_path / "sums.pt2")):
        recorder = RangeRecorder()
        watch = TapWatch(network, capture(network, (x,)).taps, recorder)
        with torch.no_grad():
            watch.run(network, x)
        watch.remove()
        assert not watch.unreliable
        found = [(r.low, r.high) for r in recorder.ranges().values()]
        assert found == [pytest.approx((float(low), float(high))) for low, high in want]


def test_a_reader_gets_the_extremes_of_its_own_tensor() -> None:
    torch.manual_seed(0)
    recorder = RangeRecorder({"second": Clamped("first", 0.0, 2.0)})
    y = torch.randn(2, 3, 40, 50)
    x = y.clamp(0.0, 2.0)
    recorder.see("first", y)
    low, high = recorder.extremes_of("second", x) or (None, None)
    assert (low, high) == (x.min(), x.max())
    assert recorder.extremes_of("second", x[:1]) is None
    assert recorder.extremes_of("first", y) is None
    recorder.begin()
    assert recorder.extremes_of("second", x) is None
    assert recorder.ranges()["first"].high == float(y.max())
