"""Sequential calibration against one that runs the network again for every layer."""

import dataclasses
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from workbench.engine import Cancelled, CancelToken, create_quant_config, quantize_model
from workbench.engine.algorithms.observer import make_observer
from workbench.engine.events import Progress
from workbench.engine.files.config import default_config, read_config
from workbench.engine.files.record import format_record, read_record
from workbench.engine.files.sidecar import read_sidecar
from workbench.engine.flows.calibration import Calibration
from workbench.engine.flows.sequential import run_in_lockstep
from workbench.engine.graph.capture import capture


class Net(nn.Module):
    """Residual adds, a layer that two others share an input with, a pool, a keyword call."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.skip = nn.Conv2d(8, 8, 1)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(8, 5)
        self.calls = 0

    def forward(self, x):
        # State between submodules: batches that run side by side must not see each other's.
        self.shortcut = x = F.relu(self.bn(self.stem(x)))
        x = F.relu(self.body(input=x))
        x = self.pool(x + self.skip(self.shortcut))
        return self.head(x.mean((2, 3)))


ORDER = ("stem", "body", "skip", "pool", "head")


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Net()
    net.bn.running_mean.normal_()
    net.bn.running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 8, 8, generator=generator) for n in (4, 2, 4)]


@pytest.fixture
def files(tmp_path):
    return [str(tmp_path / name) for name in ("config.json", "modified.onnx", "record.txt")]


def quantized(x, scale, offset, bits=8):
    """Section 2 of chapter 10."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    inverse = 1 / torch.tensor(scale, dtype=torch.float32)
    codes = torch.clamp(torch.round(x * inverse) + offset, low, high)
    return (codes - offset) * torch.tensor(scale, dtype=torch.float32)


def run_with(model, batch, grids, seen):
    """A forward in which the layers of ``grids`` read rounded inputs; ``seen`` gets all inputs."""
    hooks = []
    for name in ORDER:

        def before(_module, args, kwargs, name=name):
            x = args[0] if args else kwargs["input"]
            seen[name] = x
            if name in grids:
                x = quantized(x, *grids[name])
            return ((x,), {}) if args else ((), {"input": x})

        hooks.append(model.get_submodule(name).register_forward_pre_hook(before, with_kwargs=True))
    with torch.no_grad():
        output = model(batch)
    for hook in hooks:
        hook.remove()
    return output


def brute_force(calibrated, config, batches):
    """Layer by layer, the whole network again from the start each time."""
    model = Net().eval()
    model.bn = nn.Identity()
    model.stem.bias = nn.Parameter(torch.zeros(8))
    model.load_state_dict(calibrated.state_dict())
    grids = {}
    for name in ORDER:
        observer = make_observer(
            config.layers[name].activation, config.asymmetric(name), byte_budget=2**18
        )
        for batch in batches:
            seen = {}
            run_with(model, batch, grids, seen)
            observer.update(seen[name])
        found = observer.result()
        grids[name] = (found.scale, found.offset)
    return grids, model


def test_it_equals_calibrating_layer_by_layer_from_the_start(net, batches, files):
    config, modified, record = files
    create_quant_config(config, net, (batches[0],), batch_num=3)
    model = quantize_model(config, modified, record, net, (batches[0],), sequential=True)
    before = open(record).read()
    outputs = []
    for batch in batches:
        assert open(record).read() == before and not model.calibration.is_done
        outputs.append(model(batch))
    assert model.calibration.is_done
    parsed = read_config(config, capture(net, (batches[0],)).layers)
    grids, rerun = brute_force(model, parsed, batches)
    found = read_record(record)
    for name in ORDER:
        assert (found.layers[name].scale_d, found.layers[name].offset_d) == grids[name], name
    # The last batch's output is that of the network with all inputs rounded.
    torch.testing.assert_close(outputs[-1], run_with(rerun, batches[-1], grids, {}), rtol=0, atol=0)
    for batch, output in zip(batches[:2], outputs, strict=False):
        torch.testing.assert_close(output, run_with(rerun, batch, {}, {}), rtol=0, atol=0)

    ranges = read_sidecar(record).ranges
    assert {"input:x", "stem", "#add0"} <= set(ranges)
    seen = {}
    pooled = []
    for batch in batches:
        run_with(rerun, batch, grids, seen)
        pooled.append(seen["pool"].clone())
    assert ranges["#add0"].high == max(float(x.max()) for x in pooled)
    assert ranges["#add0"].low == min(float(x.min()) for x in pooled)

    complete = open(record).read()
    torch.testing.assert_close(
        model(batches[0]), run_with(rerun, batches[0], {}, {}), rtol=0, atol=0
    )
    assert open(record).read() == complete
    assert threading.active_count() == 1 or not any(
        t.name.startswith("sequential") for t in threading.enumerate()
    )


def test_it_differs_from_the_default_and_repeats_to_the_byte(net, batches, files):
    config, modified, record = files
    create_quant_config(config, net, (batches[0],), batch_num=3)
    texts = []
    for sequential in (False, True, True):
        model = quantize_model(config, modified, record, net, (batches[0],), sequential=sequential)
        for batch in batches:
            model(batch)
        texts.append(open(record).read())
    assert texts[1] == texts[2] != texts[0]


def job(net, x, batch_num, **options):
    captured = capture(net, (x,))
    config = default_config(captured.layers, batch_num=batch_num)
    return Calibration(captured, config, sequential=True, **options)


def test_the_loader_may_reuse_its_tensors(net, batches):
    fixed, reused = job(net, batches[0], 2), job(net, batches[0], 2)
    buffer = torch.empty_like(batches[0])
    for batch in (batches[0], batches[2]):
        fixed.model(batch)
        reused.model(buffer.copy_(batch))
    assert format_record(fixed.finalize()) == format_record(reused.finalize())


def test_layer_inputs_are_shown_in_batch_order(net, batches):
    shown = []
    calibration = job(
        net, batches[0], 3, on_layer_input=lambda name, call: shown.append((name, len(call.value)))
    )
    for batch in batches:
        calibration.model(batch)
    assert shown == [(name, n) for name in ORDER for n in (4, 2, 4)]


def test_balanced_layers_are_calibrated_in_sequence_too(net, batches):
    captured = capture(net, (batches[0],))
    config = default_config(captured.layers, batch_num=2)
    layers = dict(config.layers)
    layers["body"] = dataclasses.replace(layers["body"], dmq_balancer_param=0.5)
    config = dataclasses.replace(config, layers=layers)
    factors = tuple(0.5 + i / 4 for i in range(8))
    calibration = Calibration(captured, config, balance={"body": factors}, sequential=True)
    seen = []
    for batch in batches[:2]:
        calibration.model(batch)
        with torch.no_grad():
            stem = calibration.model.stem
            scale, offset = 1.0, 0
            if calibration.is_done:
                entry = calibration.finalize().layers["stem"]
                scale, offset = entry.scale_d, entry.offset_d
                seen = [
                    F.relu(stem(quantized(b, scale, offset)))
                    / torch.tensor(factors).reshape(1, -1, 1, 1)
                    for b in batches[:2]
                ]
    observer = make_observer(config.layers["body"].activation, True, byte_budget=2**18)
    for x in seen:
        observer.update(x)
    found = calibration.finalize().layers["body"]
    assert found.scale_d == pytest.approx(observer.result().scale, rel=1e-6)
    assert found.offset_d == observer.result().offset


def test_inputs_beyond_the_memory_budget(net):
    x = torch.zeros(4, 3, 64, 64)
    calibration = job(net, x, 8, memory_budget_mb=1)
    for _ in range(5):
        calibration.model(x + torch.rand(()))
    with pytest.raises(RuntimeError, match=r"memory_budget_mb = 1.*sequential=False"):
        calibration.model(x)


class Moody(nn.Module):
    """A second layer that is skipped, or a crash, depending on the data."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.live = False

    def forward(self, x):
        y = self.a(x)
        if self.live and float(x.detach()[0, 0]) > 50:
            raise ArithmeticError("the data are too large")
        if not (self.live and float(x.detach()[0, 0]) > 5):
            y = self.b(y)
        return self.c(y)


def moody(batch_num, **options):
    torch.manual_seed(0)
    net = Moody().eval()
    calibration = job(net, torch.zeros(2, 4), batch_num, **options)
    calibration.model.live = True
    return calibration


def test_layers_that_some_batches_skip():
    calibration = moody(3)
    for value in (1.0, 9.0, 2.0):
        calibration.model(torch.full((2, 4), value))
    assert calibration.missing() == {"b": 2}
    with pytest.raises(RuntimeError, match=r"b \(2 of 3\)"):
        calibration.finalize()
    record = calibration.finalize(allow_fewer=True)
    assert set(record.layers) == {"a", "b", "c"}
    assert all(entry.scale_d for entry in record.layers.values())


def test_an_error_in_one_batch_ends_all_of_them():
    calibration = moody(3)
    model = calibration.model
    model.live = False
    model(torch.ones(2, 4))
    model(torch.full((2, 4), 99.0))
    model.live = True
    with pytest.raises(ArithmeticError, match="too large"):
        model(torch.ones(2, 4))
    assert not any(t.name.startswith("sequential") for t in threading.enumerate())
    with pytest.raises(RuntimeError, match="earlier batch failed"):
        model(torch.ones(2, 4))


def test_cancelling_ends_all_batches(net, batches):
    token = CancelToken()
    layers = []

    def on_event(event):
        if isinstance(event, Progress) and event.what == "sequential calibration":
            layers.append(event.done)
            if event.done == 2:
                token.cancel()

    calibration = job(net, batches[0], 3, on_event=on_event, cancel=token)
    calibration.model(batches[0])
    calibration.model(batches[1])
    with pytest.raises(Cancelled):
        calibration.model(batches[2])
    assert layers == [1, 2] and not calibration.is_done
    assert not any(t.name.startswith("sequential") for t in threading.enumerate())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), unique=True, max_size=6).map(sorted), max_size=4))
def test_runs_meet_in_order_and_never_run_at_once(routes):
    running, most, log = 0, 0, []

    def body(index):
        def go(arrive):
            nonlocal running, most
            for place in routes[index]:
                running += 1
                most = max(most, running)
                running -= 1
                arrive(str(place), index)
            return index

        return go

    results = run_in_lockstep(
        [body(i) for i in range(len(routes))],
        int,
        lambda place, arrived: log.append((int(place), [brought for _, brought in arrived])),
    )
    assert results == list(range(len(routes)))
    places = sorted({place for route in routes for place in route})
    assert log == [(p, [i for i, route in enumerate(routes) if p in route]) for p in places]
    assert most <= 1


def test_an_error_while_meeting_ends_the_runs():
    ended = []

    def go(arrive):
        try:
            arrive("1", None)
        finally:
            ended.append(True)

    def meet(place, arrived):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_in_lockstep([go, go, go], int, meet)
    assert ended == [True] * 3


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.lstm = nn.LSTM(6, 5, batch_first=True)

    def forward(self, x, h, c):
        return self.lstm(torch.relu(self.embed(x)), (h, c))[0]


def test_hidden_states_are_seen_once_a_batch_behind_rounded_inputs():
    torch.manual_seed(0)
    net = Recurrent().eval()
    zero = torch.zeros(1, 2, 5)
    batches = [(torch.randn(2, 7, 4), zero, zero) for _ in range(3)]
    captured = capture(net, batches[0])
    config = default_config(captured.layers, batch_num=3)
    assert set(config.layers) == {"embed", "lstm"}
    calibration = Calibration(captured, config, sequential=True)
    for batch in batches:
        calibration.model(*batch)
    record = calibration.finalize().layers
    params = config.layers["lstm"].activation
    inputs, hidden = (make_observer(params, True, byte_budget=2**18) for _ in range(2))
    model = calibration.model
    with torch.no_grad():
        embedded = [
            torch.relu(model.embed(quantized(x, record["embed"].scale_d, record["embed"].offset_d)))
            for x, _, _ in batches
        ]
        for x in embedded:
            inputs.update(x)
        found = inputs.result()
        assert (record["lstm"].scale_d, record["lstm"].offset_d) == (found.scale, found.offset)
        for x in embedded:
            rounded = quantized(x, found.scale, found.offset)
            y = model.lstm(rounded, (zero, zero))[0]
            hidden.update(torch.cat([zero.transpose(0, 1), y[:, :-1]], dim=1))
    found = hidden.result()
    assert record["lstm"].scale_h == pytest.approx(found.scale, rel=1e-6)
    assert record["lstm"].offset_h == found.offset
