"""One layer quantised in every way, against arithmetic by hand and the real calibration."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from workbench.engine.analysis.compare import compare_algorithms
from workbench.engine.analysis.layer_alone import LayerAlone
from workbench.engine.analysis.profile import SAMPLES, layer_profile
from workbench.engine.analysis.similarity import measure_layers
from workbench.engine.errors import Cancelled, WrongValue
from workbench.engine.events import CancelToken, Notice, Progress
from workbench.engine.files.config import default_config
from workbench.engine.flows.ptq import calibrate
from workbench.engine.graph.capture import capture


def prepared(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[3].weight[:, 1] *= 9
        model[6].bias += 0.3
    batches = [(torch.randn(5, 3, 8, 8) ** 3,) for _ in range(3)]
    captured = capture(model, batches[0])
    return model, captured, default_config(captured.layers, batch_num=3), batches


def changed(config, name, *, activation=None, weight=None, **own):
    entry = config.layers[name]
    entry = dataclasses.replace(
        entry,
        activation=dataclasses.replace(entry.activation, **(activation or {})),
        weight=entry.weight and dataclasses.replace(entry.weight, **(weight or {})),
        **own,
    )
    return dataclasses.replace(config, layers={**config.layers, name: entry})


def pairs(batches):
    return [(batch, {}) for batch in batches]


def by_label(found):
    return {one.label: one for one in found}


def test_every_row_is_what_a_calibration_with_these_settings_gives():
    """Each alternative's settings, calibrated and measured by the real flow, give its figures."""
    _, captured, config, batches = prepared()
    found = compare_algorithms(captured, config, "3", pairs(batches))
    assert {one.kind for one in found} == {"activation", "balance", "weight"}
    in_use = [one.label for one in found if one.in_use]
    assert in_use == ["IFMR", "ARQ per channel"]
    for one in found:
        if not one.settings:
            continue
        settings = dict(one.settings)
        other = changed(
            config,
            "3",
            activation={
                key: settings[column]
                for column, key in (("act_algo", "act_algo"), ("act_bits", "num_bits"))
                if column in settings
            },
            weight={
                key: settings[column]
                for column, key in (
                    ("wts_algo", "wts_algo"),
                    ("wts_bits", "num_bits"),
                    ("channel_wise", "channel_wise"),
                )
                if column in settings
            },
            dmq_balancer_param=settings.get("dmq") or None,
        )
        calibration = calibrate(captured, other, batches)
        record = calibration.finalize()
        entry = record.layers["3"]
        scales = entry.scale_w if one.kind == "weight" else (entry.scale_d,)
        assert (one.scale, one.scale_max) == (min(scales), max(scales)), one.label
        assert one.offset == (0 if one.kind == "weight" else entry.offset_d), one.label
        measured = measure_layers(calibration.folded, record, batches, names=["3"])["3"]
        assert one.cosine == pytest.approx(measured.cosine, abs=1e-12), one.label
        assert one.sqnr_db == pytest.approx(measured.sqnr_db, abs=1e-9), one.label


def test_min_max_by_hand():
    _, captured, config, batches = prepared()
    found = by_label(compare_algorithms(captured, config, "0", pairs(batches)))
    one = found["min–max"]
    x = torch.cat([batch[0] for batch in batches]).numpy()
    scale = np.float32((x.max() - x.min()) / 255)
    offset = round(-128 - float(x.min()) / float(scale))
    assert (one.scale, one.offset) == (pytest.approx(float(scale), rel=1e-6), offset)
    assert not one.settings and not one.in_use
    model = captured.module
    conv = model.get_submodule("0")
    norm = model.get_submodule("1")
    ratio = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().numpy()
    w = conv.weight.detach().numpy() * ratio[:, None, None, None]
    b = (conv.bias - norm.running_mean).detach().numpy() * ratio + norm.bias.detach().numpy()
    low, high = w.reshape(6, -1).min(1), w.reshape(6, -1).max(1)
    scale_w = np.where(-low > high, -low / 128, high / 127).astype(np.float32)
    codes = np.clip(np.round(w / scale_w[:, None, None, None]), -128, 127)
    q = np.clip(np.round(x * np.float32(1 / scale)) + offset, -128, 127) - offset
    deq = (scale * scale_w)[None, :, None, None]
    bias_codes = np.round(b / (scale * scale_w))
    conv2d = nn.functional.conv2d
    quantized = (
        conv2d(*(torch.from_numpy(v).double() for v in (q, codes)), padding=1).numpy()
        + bias_codes[None, :, None, None]
    ) * deq
    reference = conv2d(*(torch.from_numpy(v).double() for v in (x, w, b)), padding=1).numpy()
    noise = ((quantized - reference) ** 2).sum()
    assert one.sqnr_db == pytest.approx(10 * math.log10((reference**2).sum() / noise), abs=1e-3)


def test_dmq_and_other_settings_in_use_are_the_base():
    _, captured, config, batches = prepared()
    config = changed(config, "3", activation={"act_algo": "hfmg"}, dmq_balancer_param=0.7)
    config = changed(config, "3", weight={"num_bits": 4, "channel_wise": False})
    found = compare_algorithms(captured, config, "3", pairs(batches))
    assert [o.label for o in found if o.in_use] == ["HFMG + DMQ 0.7", "ARQ per tensor"]
    calibration = calibrate(captured, config, batches)
    measured = measure_layers(calibration.folded, calibration.finalize(), batches)["3"]
    for one in found:
        if one.in_use:
            assert one.cosine == pytest.approx(measured.cosine, abs=1e-12)


def test_learned_rounding_only_when_asked_with_progress_and_cancel():
    _, captured, config, batches = prepared()
    events = []
    found = compare_algorithms(
        captured, config, "3", pairs(batches), algorithms=["arq_quantize", "ada_quantize"],
        ada_iterations=60, on_event=events.append,
    )  # fmt: skip
    assert found[-1].label == "ADA per channel"
    assert found[-1].settings == {"wts_algo": "ada_quantize"}
    # The same as the real flow with as many iterations.
    other = changed(config, "3", weight={"wts_algo": "ada_quantize", "num_iteration": 60})
    calibration = calibrate(captured, other, batches, calibration_data=pairs(batches))
    measured = measure_layers(
        calibration.folded, calibration.finalize(), batches, weights=calibration.fake_weights
    )["3"]
    assert found[-1].cosine == pytest.approx(measured.cosine, abs=1e-9)
    steps = [e for e in events if isinstance(e, Progress) and e.what == "compare"]
    assert [e.done for e in steps] == sorted(e.done for e in steps)
    assert steps[-1].done == steps[-1].total

    token = CancelToken()

    def stop(event):
        if type(event).__name__ == "RoundingTuned":
            token.cancel()

    with pytest.raises(Cancelled):
        compare_algorithms(
            captured, config, "3", pairs(batches), algorithms=["ada_quantize"],
            ada_iterations=100_000, on_event=stop, cancel=token,
        )  # fmt: skip


def test_layers_without_weights_and_refusals():
    _, captured, config, batches = prepared()
    found = compare_algorithms(captured, config, "4", pairs(batches))
    assert [o.label for o in found] == ["IFMR", "HFMG", "min–max"]
    with pytest.raises(WrongValue, match="cannot be quantised"):
        compare_algorithms(captured, config, "nowhere", pairs(batches))
    with pytest.raises(WrongValue, match="allowed: ifmr, hfmg"):
        compare_algorithms(captured, config, "3", pairs(batches), algorithms=["kl"])


def test_an_lstm():
    torch.manual_seed(1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(6, 4, batch_first=True)
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            zero = torch.zeros(1, x.shape[0], 4)
            out, _ = self.lstm(x, (zero, zero))
            return self.fc(out[:, -1])

    batches = [(torch.randn(3, 5, 6),) for _ in range(2)]
    captured = capture(Net().eval(), batches[0])
    config = default_config(captured.layers, batch_num=2)
    found = by_label(compare_algorithms(captured, config, "lstm", pairs(batches)))
    calibration = calibrate(captured, config, batches)
    measured = measure_layers(calibration.folded, calibration.finalize(), batches)["lstm"]
    assert found["IFMR"].cosine == pytest.approx(measured.cosine, abs=1e-9)
    profile = layer_profile(LayerAlone(captured, config, "lstm", pairs(batches)))
    assert len(profile.channel_low) == len(profile.channel_scales) == 32


def test_the_profile_against_the_layer_itself():
    model, captured, config, batches = prepared()
    alone = LayerAlone(captured, config, "6", pairs(batches))
    profile = layer_profile(alone)
    weight = model[6].weight.detach().numpy()
    assert profile.channel_low == pytest.approx(weight.min(1))
    assert profile.channel_high == pytest.approx(weight.max(1))
    low, high = float(weight.min()), float(weight.max())
    assert profile.channel_scales == pytest.approx(
        [-low / 128 if -low > high else high / 127] * 4, rel=1e-6
    )
    assert profile.error_counts.sum() == 3 * 5 * 4
    assert len(profile.sample_float) == 60 <= SAMPLES
    with torch.no_grad():
        reference = torch.cat([model(*batch).reshape(-1) for batch in batches]).numpy()
    assert profile.sample_float == pytest.approx(reference, rel=1e-4, abs=1e-5)
    error = np.abs(profile.sample_quantized - profile.sample_float).max()
    assert profile.error_edges[-1] == pytest.approx(error)
    assert profile.histogram.activation_counts.sum() == 3 * 5 * 36


def test_a_small_budget_takes_fewer_batches_and_says_so():
    _, captured, config, batches = prepared()
    events = []
    alone = LayerAlone(captured, config, "3", pairs(batches), byte_budget=1, on_event=events.append)
    assert len(alone.calls) == 1
    assert any(isinstance(e, Notice) and "1 of 3 batches" in e.message for e in events)
