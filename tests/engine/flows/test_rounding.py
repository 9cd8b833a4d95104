"""AdaRound in the flow: configuration to ONNX Runtime, and what it leaves alone."""

import hashlib
import json
import os

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import nn

from workbench.engine import create_quant_config, quantize_model, save_model
from workbench.engine.algorithms.kl import kl_scale
from workbench.engine.errors import Cancelled
from workbench.engine.events import CancelToken, Progress, RoundingTuned
from workbench.engine.export.torch_module import to_fake_quant
from workbench.engine.files.config import read_config
from workbench.engine.files.record import read_record
from workbench.engine.flows.balancing import Balancing
from workbench.engine.flows.calibration import Calibration
from workbench.engine.flows.ptq import calibrate
from workbench.engine.graph.capture import capture

LAYERS = ("stem", "up", "head")


class Net(nn.Module):
    """Conv + BN + ReLU, a grouped ConvTranspose, a BN that is not folded, dropout, a Linear."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 5)

    def forward(self, x, shift=None):
        x = F.relu(self.bn(self.stem(x)), inplace=True)
        x = F.leaky_relu(self.norm(self.up(x)), 0.1)
        x = self.drop(x).mean((2, 3))
        return self.head(x if shift is None else x + shift)


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Net()
    for norm in (net.bn, net.norm):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.fixture
def x():
    return torch.randn(48, 2, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def files(tmp_path):
    return [str(tmp_path / n) for n in ("config.json", "modified.onnx", "record.txt", "out/net")]


def configure(net, x, path, *, bits=8, iterations=40, layers=LAYERS, **more):
    """The default configuration with ADA on ``layers``; ``bits`` where the layer allows them."""
    create_quant_config(path, net, (x,))
    config = json.load(open(path))
    for name in layers:
        weight = config[name]["weight_quant_params"]
        allowed = {"stem": (4, 6, 7, 8), "up": (8,), "head": (4, 8)}.get(name, (4, 6, 7, 8))
        weight.update(
            {"wts_algo": "ada_quantize", "num_iteration": iterations, **more},
            num_bits=bits if bits in allowed else 8,
        )
    json.dump(config, open(path, "w"))


def quantized(net, x, files, **options):
    model = quantize_model(files[0], files[1], files[2], net, (x,), **options)
    model(x)
    save_model(files[1], files[2], files[3])
    return model.calibration


def channel_scales(scale, weight, layer):
    """A record's scales spread over a weight of the test net."""
    scale = torch.tensor(scale)
    if len(scale) == 1:
        return scale.reshape([1] * weight.dim())
    if not isinstance(layer, nn.ConvTranspose2d):
        return scale.reshape(-1, 1, 1, 1)
    groups = layer.groups
    rows = scale.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, dim=0)
    return rows.reshape(*rows.shape, 1, 1)


def stored_codes(path, name):
    """The weight of a layer in the deploy file, by the initializer its node reads."""
    graph = onnx.load(path).graph
    node = next(n for n in graph.node if n.name == name)
    tensor = next(i for i in graph.initializer if i.name == node.input[1])
    return numpy_helper.to_array(tensor)


@pytest.mark.parametrize("bits", [4, 6, 7, 8])
def test_files_hold_the_decision_of_every_layer(net, x, files, bits):
    configure(net, x, files[0], bits=bits)
    calibration = quantized(net, x, files)
    record = read_record(files[2]).layers
    learned = 0
    for name in LAYERS:
        layer = calibration.folded.get_submodule(name)
        weight = layer.weight.detach()
        own = record[name].wts_bits
        assert record[name].wts_type == f"INT{own}"
        scale = channel_scales(record[name].scale_w, weight, layer)
        floor = torch.floor(weight / scale)
        codes = torch.round(calibration.fake_weights[name] / scale)
        low, high = -(2 ** (own - 1)), 2 ** (own - 1) - 1
        down, up = floor.clamp(low, high), (floor + 1).clamp(low, high)
        assert bool(((codes == down) | (codes == up)).all()), name
        nearest = torch.round(weight / scale).clamp(low, high)
        learned += int((codes != nearest).sum())
        stored = stored_codes(files[3] + "_deploy_model.onnx", name)
        if own == 4:
            raw = stored.view(np.uint8)
            low_nibble = (raw << 4).astype(np.uint8).view(np.int8) >> 4
            axis = 1 if name == "stem" else stored.shape.index(3)
            stored = np.stack([low_nibble, raw.view(np.int8) >> 4], axis + 1)
            stored = stored.reshape([n * 2 if i == axis else n for i, n in enumerate(raw.shape)])
        if stored.shape != tuple(codes.shape):
            stored = stored.T
        assert np.array_equal(stored, codes.numpy().astype(np.int8)), name
    assert learned


def test_scales_are_those_of_kl(net, x, files):
    configure(net, x, files[0], bits=6)
    calibration = quantized(net, x, files)
    record = read_record(files[2]).layers
    stem = calibration.folded.stem.weight
    assert torch.tensor(record["stem"].scale_w).equal(kl_scale(stem, 6, 0))
    assert record["head"].scale_w == tuple(kl_scale(net.head.weight, 8, None).tolist())
    rows = net.up.weight.reshape(2, 4, 3, 2, 2).transpose(1, 2).reshape(6, -1)
    assert torch.tensor(record["up"].scale_w).equal(kl_scale(rows, 8, 0))


def test_end_to_end_in_onnx_runtime(net, x, files):
    configure(net, x, files[0], bits=8)
    calibration = quantized(net, x, files)
    module = to_fake_quant(
        calibration.folded, calibration.finalize(), weights=calibration.fake_weights
    )
    with torch.no_grad():
        simulated, wanted = module(x).numpy(), net(x).numpy()
    session = ort.InferenceSession(
        files[3] + "_fake_quant_model.onnx", providers=["CPUExecutionProvider"]
    )
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert np.abs(got - simulated).max() < 1e-4 * np.abs(simulated).max()
    assert (got * wanted).sum() / np.sqrt((got**2).sum() * (wanted**2).sum()) > 0.999


def test_no_iterations_mean_nearest_rounding(net, x, files):
    configure(net, x, files[0], bits=4, iterations=0)
    events = []
    calibration = quantized(net, x, files, on_event=events.append)
    for name in LAYERS:
        layer, entry = calibration.folded.get_submodule(name), calibration.finalize().layers[name]
        scale = channel_scales(entry.scale_w, layer.weight, layer)
        bits = entry.wts_bits
        codes = (layer.weight / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        assert torch.equal(calibration.fake_weights[name], (codes * scale).detach())
    assert not any(isinstance(event, RoundingTuned) for event in events)


def test_same_seed_same_bytes(net, x, files):
    configure(net, x, files[0], bits=4)

    def written(seed):
        quantized(net, x, files, seed=seed)
        return [open(p, "rb").read() for p in (files[2], files[3] + "_deploy_model.onnx")]

    first = written(5)
    torch.manual_seed(99)
    assert written(5) == first


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 6, 3)

    def forward(self, x):
        return self.second(F.relu(self.first(x)))


def test_reconstruction_is_not_above_that_of_nearest_rounding(tmp_path):
    torch.manual_seed(1)
    net = Two().eval()
    x = torch.randn(24, 3, 7, 7)
    path = str(tmp_path / "config.json")
    create_quant_config(path, net, (x,))
    config = json.load(open(path))
    # Three input channels do not go into four bits.
    for name, bits in (("first", 6), ("second", 4)):
        config[name]["weight_quant_params"].update(
            wts_algo="ada_quantize", num_iteration=2000, num_bits=bits
        )
    json.dump(config, open(path, "w"))
    files = [str(tmp_path / n) for n in ("m.onnx", "r.txt")]
    calibration = quantize_model(path, *files, net, (x,)).calibration
    tuned = calibration.fake_weights

    def mse(y, target):
        return float(((y - target) ** 2).sum(1).mean())

    with torch.no_grad():
        targets = [F.relu(net.first(x)), net(x)]
        inputs = [x, F.relu(F.conv2d(x, tuned["first"], net.first.bias))]
        for i, (name, bits) in enumerate((("first", 6), ("second", 4))):
            layer = net.get_submodule(name)
            scale = kl_scale(layer.weight, bits, 0).reshape(-1, 1, 1, 1)
            codes = (layer.weight / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            losses = []
            for weight in (tuned[name], codes * scale):
                y = F.conv2d(inputs[i], weight, layer.bias)
                losses.append(mse(F.relu(y) if i == 0 else y, targets[i]))
            assert losses[0] <= losses[1], (name, losses)


def test_the_users_model_is_untouched(net, x, files):
    configure(net, x, files[0])
    net.train()
    net.norm.eval()

    def digest():
        state = hashlib.sha256()
        for name, value in sorted(net.state_dict().items()):
            state.update(name.encode() + value.numpy().tobytes())
        return state.hexdigest(), [m.training for m in net.modules()]

    before = digest()
    calibration = quantized(net, x, files)
    assert digest() == before
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    # The calibration's own copies neither ran in train mode nor moved their statistics.
    assert torch.equal(calibration.folded.norm.running_mean, net.norm.running_mean)
    assert not any(m.training for m in calibration.model.modules())
    assert calibration.folded.norm.num_batches_tracked == net.norm.num_batches_tracked


def test_cancel_stops_at_the_next_step_and_leaves_nothing(net, x, files, tmp_path):
    configure(net, x, files[0], iterations=300)
    token, events = CancelToken(), []

    def stop(event):
        events.append(event)
        if isinstance(event, RoundingTuned):
            token.cancel()

    with pytest.raises(Cancelled):
        quantize_model(files[0], files[1], files[2], net, (x,), on_event=stop, cancel=token)
    assert sum(isinstance(event, RoundingTuned) for event in events) == 1
    assert not os.path.exists(files[1]) and not os.path.exists(files[2])
    assert {p.name for p in tmp_path.iterdir()} <= {"config.json", "config.json.workbench.json"}


def test_events_tell_progress_and_loss(net, x, files):
    configure(net, x, files[0], iterations=250)
    events = []
    quantized(net, x, files, on_event=events.append)
    losses = [e for e in events if isinstance(e, RoundingTuned)]
    assert list(dict.fromkeys(e.layer for e in losses)) == list(LAYERS)
    for name in LAYERS:
        own = [e for e in losses if e.layer == name]
        assert own[-1].iteration == own[-1].iterations == 250
        assert 50 <= len(own) <= 130
    done = [e.done for e in events if isinstance(e, Progress) and e.what == "rounding"]
    assert done == sorted(done) and done[-1] == 3 * 250


def test_data_that_gives_no_finite_loss_names_the_layer(net, x, files):
    configure(net, x, files[0])
    x[0, 0, 0, 0] = float("inf")
    with pytest.raises(RuntimeError, match="layer stem"):
        quantize_model(files[0], files[1], files[2], net, (x,))
    assert not os.path.exists(files[1])


def test_an_iterator_of_batches_with_keyword_arguments_is_what_is_learned_on(net, x, files):
    configure(net, x[:2], files[0], bits=4, iterations=100)
    shift = torch.full((16, 6), 0.3)
    batches = [(x[i : i + 16] * factor, {"shift": shift}) for i, factor in ((0, 1), (16, 4))]
    few = quantize_model(*files[:3], net, (x[:16], {"shift": shift})).calibration
    many = quantize_model(
        *files[:3], net, (x[:16], {"shift": shift}), calibration_data=iter(batches)
    ).calibration
    captured = capture(net, (x[:16], {"shift": shift}))
    same = calibrate(captured, many.config, batches, calibration_data=[
        (batch[:1], batch[1]) for batch in batches
    ])  # fmt: skip
    assert any(not torch.equal(few.fake_weights[n], many.fake_weights[n]) for n in LAYERS)
    for name in LAYERS:
        assert torch.equal(same.fake_weights[name], many.fake_weights[name])
    with pytest.raises(RuntimeError, match="no batch"):
        quantize_model(*files[:3], net, (x[:16],), calibration_data=iter(()))


def test_a_small_byte_budget_gives_the_same_weights(net, x, files):
    configure(net, x, files[0], bits=4)
    ample = quantize_model(*files[:3], net, (x,)).calibration
    scant = quantize_model(*files[:3], net, (x,), memory_budget_mb=0).calibration
    for name in LAYERS:
        assert torch.equal(ample.fake_weights[name], scant.fake_weights[name])


def test_arq_layers_before_are_read_quantised(net, x, files):
    """Only head learns: what it reads comes through the rounded weights of the others."""
    configure(net, x, files[0], bits=4, layers=("head",), iterations=300)
    config = json.load(open(files[0]))
    config["stem"]["weight_quant_params"]["num_bits"] = 4
    json.dump(config, open(files[0], "w"))
    coarse = quantize_model(*files[:3], net, (x,)).calibration
    assert coarse.tuned_weights.keys() == {"head"}
    config["stem"]["weight_quant_params"]["num_bits"] = 8
    json.dump(config, open(files[0], "w"))
    fine = quantize_model(*files[:3], net, (x,)).calibration
    assert not torch.equal(coarse.fake_weights["head"], fine.fake_weights["head"])


@pytest.mark.parametrize("iterations", [1, 40])
def test_alpha_starts_from_the_balanced_weight(net, x, files, iterations):
    configure(net, x, files[0], bits=8, iterations=iterations)
    config = json.load(open(files[0]))
    for name in LAYERS:
        config[name]["dmq_balancer_param"] = 0.5
    json.dump(config, open(files[0], "w"))
    captured = capture(net, (x,))
    settings = read_config(files[0], captured.layers)
    balancing = Balancing(captured, settings)
    balancing.model(x)
    factors = balancing.finalize()
    calibration = Calibration(captured, settings, balance=factors)
    for name, axis in (("up", 0), ("head", 1)):
        layer = calibration.folded.get_submodule(name)
        shape = [-1 if i == axis else 1 for i in range(layer.weight.dim())]
        balanced = layer.weight.detach() * torch.tensor(factors[name]).reshape(shape)
        entry = calibration.initial_record().layers[name]
        scale = channel_scales(entry.scale_w, balanced, layer)
        codes = calibration.fake_weights[name] / scale
        inside = (balanced / scale).abs() < 126
        distance = (codes - balanced / scale).abs()[inside]
        assert bool((distance < 1).all()), name
        if iterations == 1:
            # One step moves nothing far: the decision is still that of the starting point.
            assert float(distance.max()) < 0.51, name
    with torch.no_grad():
        got, wanted = calibration.model(x), net(x)
    assert float((got - wanted).norm() / wanted.norm()) < 0.02


def test_float16_weights_keep_their_codes(x, files):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)).half()
    net, x = net.eval(), x.half()
    configure(net, x, files[0], layers=("0", "3"))
    calibration = quantize_model(*files[:3], net, (x,)).calibration
    for name in ("0", "3"):
        fake = calibration.fake_weights[name]
        assert fake.dtype == torch.float16
        layer = net.get_submodule(name)
        entry = calibration.initial_record().layers[name]
        scale = channel_scales(entry.scale_w, layer.weight, layer)
        quotient = fake.float() / scale
        # Far from the borders between codes, so that save_model finds the codes decided on.
        assert float((quotient - quotient.round()).abs().max()) < 0.1
        floor = torch.floor(layer.weight.float() / scale).clamp(-128, 127)
        assert bool(((quotient.round() - floor).abs() <= 1).all())
