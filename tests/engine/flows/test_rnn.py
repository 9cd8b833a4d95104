"""Calibration of LSTM and GRU against formulas written out here (chapter 10 sections 6.4, 8)."""

from dataclasses import replace

import numpy as np
import pytest
import rnn_models
import torch

from workbench.engine.files.config import default_config
from workbench.engine.files.record import format_record, parse_record
from workbench.engine.flows.calibration import Calibration
from workbench.engine.flows.ptq import calibrate
from workbench.engine.graph.capture import capture

EVERY = [("LSTM", True), ("LSTM", False), ("GRU", True), ("GRU", False)]
TORCH_TO_ONNX = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}


def start(kind, batch_first, **options):
    net = rnn_models.model(kind, batch_first)
    captured = capture(net, rnn_models.data(net, 2))
    config = replace(default_config(captured.layers, batch_num=2), **options)
    return net, captured, config, [rnn_models.data(net, 3, seed) for seed in (1, 2)]


def arq(weight):
    """Section 8.1, one scale a row."""
    low, high = weight.min(1), weight.max(1)
    levels = np.where(np.abs(high) < np.abs(low), 128, 127)
    return np.maximum(np.abs(low), np.abs(high)) / levels


def in_onnx_order(kind, values):
    gates = values.reshape(-1, rnn_models.HIDDEN)
    return np.concatenate([gates[gate] for gate in TORCH_TO_ONNX[kind]])


def ifmr(values):
    """Section 9.1, asymmetric, 8 bits, default percentiles on few values, in float64."""
    high, low = max(0.0, values.max()), min(0.0, values.min())
    best = None
    for ratio in np.arange(0.7, 1.3, 0.01, dtype=np.float32):
        top = float(ratio) * high
        scale = (top - low) / 255
        error = np.mean((np.rint(np.clip(values, low, top) / scale) * scale - values) ** 2)
        if best is None or error < best[0]:
            best = (error, scale)
    return best[1], int(-np.rint(low / best[1]) - 128)


@pytest.mark.parametrize(("kind", "batch_first"), EVERY)
def test_both_weights_get_scales_in_onnxs_gate_order(kind, batch_first):
    net, captured, config, batches = start(kind, batch_first)
    entry = calibrate(captured, config, batches).finalize().layers["rnn"]
    for scales, offsets, weight in (
        (entry.scale_w, entry.offset_w, net.rnn.weight_ih_l0),
        (entry.scale_r, entry.offset_r, net.rnn.weight_hh_l0),
    ):
        wanted = in_onnx_order(kind, arq(weight.detach().numpy()))
        np.testing.assert_allclose(scales, wanted, rtol=1e-6)
        assert offsets == (0,) * len(scales)
    assert (entry.wts_type, entry.act_type) == ("INT8", "INT8")


def test_the_record_of_a_hand_computed_lstm():
    """H = 1: each gate has one row, whose largest value is known."""
    net = rnn_models.Recurrent("LSTM").eval()
    net.rnn = torch.nn.LSTM(2, 1, batch_first=True).eval()
    net.fc = torch.nn.Linear(1, 3)
    with torch.no_grad():
        # torch's rows: i, f, g, o.
        net.rnn.weight_ih_l0.copy_(torch.tensor([[1.27, 0], [2.54, 0], [0, 3.81], [0, -5.12]]))
        net.rnn.weight_hh_l0.copy_(torch.tensor([[0.127], [0.254], [0.381], [-0.512]]))
    batch = (torch.randn(2, 3, 2), torch.zeros(1, 2, 1), torch.zeros(1, 2, 1))
    captured = capture(net, batch)
    calibration = calibrate(captured, default_config(captured.layers), [batch])
    entry = calibration.finalize().layers["rnn"]
    # ONNX's order: i, o, f, c. The negative side of W's row for o is the larger one (128 levels);
    # in R that row is one value, minimum and maximum at once (127 levels).
    assert entry.scale_w == pytest.approx((0.01, 0.04, 0.02, 0.03), rel=1e-6)
    assert entry.scale_r == pytest.approx((0.001, 0.512 / 127, 0.002, 0.003), rel=1e-6)
    text = format_record(calibration.finalize())
    fields = [line.split(":")[0].strip() for line in text.splitlines()]
    order = ("scale_d", "offset_d", "scale_w", "offset_w", "act_type", "wts_type")
    order += ("scale_h", "offset_h", "scale_r", "offset_r")
    positions = [fields.index(field) for field in order]
    assert positions == sorted(positions)
    assert parse_record(text, source="test").layers["rnn"] == entry


@pytest.mark.parametrize(("kind", "batch_first"), EVERY)
def test_hidden_states_are_the_initial_one_and_all_outputs_but_the_last(kind, batch_first):
    _net, captured, config, batches = start(kind, batch_first)
    calibration = calibrate(captured, config, batches)
    entry = calibration.finalize().layers["rnn"]
    # The calibration model computes with the fake-quantised weights (D4).
    rnn = calibration.model.rnn
    seen, inputs = [], []
    with torch.no_grad():
        for x, h, *c in batches:
            sequence = x if not batch_first else x.transpose(0, 1)
            inputs.append(x.numpy().ravel())
            state = (h, c[0]) if c else h
            for step in sequence:
                seen.append((state[0] if c else state).numpy().ravel())
                _, state = rnn(step.unsqueeze(1 if batch_first else 0), state)
    scale, offset = ifmr(np.concatenate(seen).astype(np.float64))
    assert entry.scale_h == pytest.approx(scale, rel=1e-5)
    assert entry.offset_h == offset
    scale, offset = ifmr(np.concatenate(inputs).astype(np.float64))
    assert (entry.scale_d, entry.offset_d) == (pytest.approx(scale, rel=1e-5), offset)


def test_the_calibration_model_holds_fake_quantised_weights_and_the_users_stay():
    net, captured, config, _ = start("GRU", True)
    before = [p.detach().clone() for p in net.parameters()]
    calibration = Calibration(captured, config)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        weight = getattr(net.rnn, name).detach().numpy()
        scale = arq(weight)[:, None]
        wanted = np.clip(np.rint(weight / scale), -128, 127) * scale
        np.testing.assert_allclose(
            calibration.model.rnn.get_parameter(name).detach(), wanted, rtol=1e-5
        )
    first = calibration.initial_record().layers["rnn"]
    assert first.scale_r and first.scale_h is None and first.scale_d is None
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_both_activation_scales_take_half_precision_when_forced():
    *_, config, batches = start("LSTM", True)
    _net, captured, forced, _ = start("LSTM", True, fakequant_precision_mode="FORCE_FP16_QUANT")
    plain = calibrate(captured, config, batches).finalize().layers["rnn"]
    entry = calibrate(captured, forced, batches).finalize().layers["rnn"]
    assert entry.scale_h == float(np.float16(plain.scale_h)) != plain.scale_h
    assert entry.scale_d == float(np.float16(plain.scale_d))
    assert entry.fakequant_precision_mode == "FORCE_FP16_QUANT"


def test_sequential_calibration_sees_hidden_states_too():
    _, captured, config, batches = start("LSTM", True)
    entry = calibrate(captured, config, batches, sequential=True).finalize().layers["rnn"]
    assert entry.scale_h is not None and entry.scale_h > 0
