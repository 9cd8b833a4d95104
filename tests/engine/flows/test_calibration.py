"""The life cycle of a calibration with either activation algorithm, and how close the result is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.engine import create_quant_config, quantize_model, save_model
from workbench.engine.events import CancelToken, Event, Notice, Progress
from workbench.engine.files.config import default_config
from workbench.engine.files.record import read_record
from workbench.engine.flows.calibration import Calibration
from workbench.engine.graph.capture import capture

Run = Callable[..., nn.Module]

ALGORITHMS = ["ifmr", "hfmg"]


class Net(nn.Module):
    """A small CNN: Conv + BN + ReLU twice with a residual add, a pool, a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.body = nn.Conv2d(16, 16, 3, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = self.pool(F.relu(self.body(x) + x))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    # Different sizes and a wider range each time: the histograms have to grow.
    return [torch.randn(4 + i, 3, 12, 12, generator=generator) * (i + 1) for i in range(3)]


def files(folder: Path, name: str = "a") -> tuple[str, str, str]:
    ends = ("config.json", "modified.onnx", "record.txt")
    return tuple(str(folder / f"{name}-{end}") for end in ends)  # type: ignore[return-value]


def prepare(
    net: nn.Module,
    batches: list[Tensor],
    paths: tuple[str, str, str],
    algorithm: str,
    weight_bits: int = 8,
) -> nn.Module:
    create_quant_config(paths[0], net, (batches[0],), batch_num=len(batches))
    config = json.loads(Path(paths[0]).read_text())
    # Three input channels do not go into four bits.
    for name in ("body", "head"):
        if name in config:
            config[name]["weight_quant_params"]["num_bits"] = weight_bits
    for layer in config.values():
        if isinstance(layer, dict) and algorithm == "hfmg":
            given = layer["activation_quant_params"]
            layer["activation_quant_params"] = {
                "num_bits": given["num_bits"],
                "act_algo": "hfmg",
                "num_of_bins": 1024,
            }
    Path(paths[0]).write_text(json.dumps(config))
    return quantize_model(*paths, net, (batches[0],))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_record_is_complete_after_the_last_batch_and_not_before(
    net: Net, batches: list[Tensor], tmp_path: Path, algorithm: str
) -> None:
    paths = files(tmp_path)
    model = prepare(net, batches, paths, algorithm)
    first = Path(paths[2]).read_text()
    assert "scale_d" not in first
    model(batches[0])
    model(batches[1])
    assert Path(paths[2]).read_text() == first
    with pytest.raises(RuntimeError, match=r"stem \(2 of 3\)"):
        model.calibration.finalize()
    with pytest.raises(RuntimeError, match="scale_d"):
        save_model(paths[1], paths[2], str(tmp_path / "out"))
    model(batches[2])
    complete = Path(paths[2]).read_text()
    assert complete.count("scale_d") == 4
    model(batches[0])
    assert Path(paths[2]).read_text() == complete
    low, high = (float(f(torch.stack([f(b) for b in batches]))) for f in (torch.min, torch.max))
    # Either algorithm clips a little of the span of the input that the first layer reads.
    span = read_record(paths[2]).layers["stem"].scale_d * 255
    assert 0.5 * (high - low) < span <= 1.3 * high - low


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_interleaved_jobs_give_the_records_of_separate_ones(
    net: Net, batches: list[Tensor], tmp_path: Path, algorithm: str
) -> None:
    other = "hfmg" if algorithm == "ifmr" else "ifmr"
    separate, together = [], []
    for name, algo in (("a", algorithm), ("b", other)):
        model = prepare(net, batches, files(tmp_path, name), algo)
        for batch in batches:
            model(batch)
        separate.append(Path(files(tmp_path, name)[2]).read_bytes())
    models = [
        prepare(net, batches, files(tmp_path, name), algo)
        for name, algo in (("c", algorithm), ("d", other))
    ]
    for batch in batches:
        for model in models:
            model(batch)
    together = [Path(files(tmp_path, name)[2]).read_bytes() for name in "cd"]
    assert together == separate
    assert separate[0] != separate[1]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_bad_batch_names_layer_and_batch_and_ends_the_job(
    net: Net, batches: list[Tensor], tmp_path: Path, algorithm: str
) -> None:
    paths = files(tmp_path)
    model = prepare(net, batches, paths, algorithm)
    model(batches[0])
    with pytest.raises(RuntimeError, match="stem, batch 2: .*inf or NaN"):
        model(batches[1] * float("inf"))
    with pytest.raises(RuntimeError, match="earlier batch failed"):
        model(batches[1])
    assert "scale_d" not in Path(paths[2]).read_text()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("threads", [1, 2])
def test_same_batches_give_the_same_bytes(
    net: Net, tmp_path: Path, algorithm: str, threads: int
) -> None:
    # More values than one thread counts alone.
    batch = torch.randn(8, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    records = []
    for name in "ab":
        prepare(net, [batch], files(tmp_path, name), algorithm)(batch)
        records.append(Path(files(tmp_path, name)[2]).read_bytes())
    torch.set_num_threads(before)
    assert records[0] == records[1]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("weight_bits", "least"), [(8, 0.999), (4, 0.98)])
def test_fake_quant_file_is_close_to_the_float_model(
    net: Net,
    batches: list[Tensor],
    tmp_path: Path,
    algorithm: str,
    weight_bits: int,
    least: float,
) -> None:
    """Section 15, Files 8."""
    paths = files(tmp_path)
    model = prepare(net, batches, paths, algorithm, weight_bits)
    assert read_record(paths[2]).layers["body"].wts_type == f"INT{weight_bits}"
    for batch in batches:
        model(batch)
    save_model(paths[1], paths[2], str(tmp_path / "net"))
    session = ort.InferenceSession(
        str(tmp_path / "net_fake_quant_model.onnx"), providers=["CPUExecutionProvider"]
    )
    x = torch.cat(batches)
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        wanted = net(x).numpy()
    cosine = (got * wanted).sum() / np.sqrt((got**2).sum() * (wanted**2).sum())
    assert cosine >= least


def test_progress_a_batch_and_cancel_before_the_next(net: Net, batches: list[Tensor]) -> None:
    events: list[Event] = []
    cancel = CancelToken()
    captured = capture(net, (batches[0],))
    calibration = Calibration(
        captured,
        default_config(captured.layers, batch_num=3),
        on_event=events.append,
        cancel=cancel,
    )
    calibration.model(batches[0])
    assert calibration.missing() == dict.fromkeys(("stem", "body", "pool", "head"), 1)
    steps = [e for e in events if isinstance(e, Progress) and e.what == "calibration"]
    assert [(e.done, e.total) for e in steps] == [(1, 3)]
    cancel.cancel()
    with pytest.raises(Exception, match="cancelled"):
        calibration.model(batches[1])
    assert calibration.missing()["stem"] == 1


class Switch(nn.Module):
    """The second of two layers runs only on request."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.skip = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        out: Tensor = x if self.skip else self.second(x)
        return out


def test_a_layer_that_some_batches_miss_is_told_and_waited_for(tmp_path: Path) -> None:
    """D16: the layers that lack batches are named, and further batches complete the record."""
    torch.manual_seed(0)
    net, x = Switch().eval(), torch.randn(3, 4)
    config, modified, record = files(tmp_path)
    create_quant_config(config, net, (x,), batch_num=2)
    events: list[Event] = []
    model = quantize_model(config, modified, record, net, (x,), on_event=events.append)
    notices = lambda: [e.message for e in events if isinstance(e, Notice)]
    model(x)
    model.skip = True
    assert not notices()
    model(x)
    assert notices() == ["more batches are needed; so far second (1 of 2)"]
    assert model.calibration.missing() == {"second": 1}
    assert "scale_d" not in Path(record).read_text()
    model.skip = False
    # The first layer has its batches; only the second counts this one.
    model(x * 100)
    assert model.calibration.is_done and not model.calibration.missing()
    layers = read_record(record).layers
    span = float(x.max() - x.min())
    assert 0.5 * span < layers["first"].scale_d * 255 < 1.3 * span
    assert layers["second"].scale_d * 255 > 5 * span


class Twins(nn.Module):
    """Two layers read one tensor, and so share an observer."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.left(x) + self.right(x)
        return out


@pytest.mark.parametrize("batch_num", [1, 2])
def test_every_layer_shows_as_many_inputs_as_batches_count(batch_num: int) -> None:
    """The layer that runs last must not lose the last batch to its twin's result."""
    example = torch.randn(2, 3, 8, 8)
    captured = capture(Twins().eval(), (example,))
    config = default_config(captured.layers, batch_num=batch_num)
    shown: list[str] = []
    calibration = Calibration(
        captured, config, on_layer_input=lambda name, *values: shown.append(name)
    )
    for _ in range(batch_num + 2):
        calibration.model(example)
    assert sorted(shown) == ["left"] * batch_num + ["right"] * batch_num


@pytest.mark.parametrize("sample_limit", [None, 30_000])
def test_extremes_derived_from_another_tensor_change_nothing(
    sample_limit: int | None,
    net: Net,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches = [torch.randn(2, 3, 64, 64) * scale for scale in (1.0, 3.0)]
    captured = capture(net, (batches[0],))
    config = default_config(captured.layers, batch_num=len(batches))

    def calibrated() -> Calibration:
        calibration = Calibration(captured, config, sample_limit=sample_limit)
        for batch in batches:
            calibration.model(batch)
        return calibration

    derived = calibrated()
    monkeypatch.setattr("workbench.engine.flows.calibration.clamped_inputs", lambda *args: {})
    looked_at = calibrated()
    assert derived.finalize() == looked_at.finalize()
    assert derived.sidecar() == looked_at.sidecar()


@pytest.mark.parametrize("sample_limit", [None, 30_000])
def test_two_threads_find_what_one_finds(net: Net, sample_limit: int | None) -> None:
    batches = [torch.randn(2, 3, 64, 64) * scale for scale in (1.0, 3.0)]
    captured = capture(net, (batches[0],))
    config = default_config(captured.layers, batch_num=len(batches))
    before, records = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            calibration = Calibration(captured, config, sample_limit=sample_limit)
            for batch in batches:
                calibration.model(batch)
            records.append(calibration.finalize())
    finally:
        torch.set_num_threads(before)
    for name, one in records[0].layers.items():
        two = records[1].layers[name]
        assert two.scale_d == pytest.approx(one.scale_d, rel=1e-5)
        assert two.offset_d == one.offset_d
