"""What a layer may be beside its configuration, and records that mix calibrations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from workbench.engine.files.config import default_config
from workbench.engine.files.record import Record
from workbench.engine.flows.calibration import Calibration
from workbench.engine.graph.capture import capture
from workbench.engine.search.costs import CostTable
from workbench.engine.search.evaluator import AutoCalibrationEvaluatorBase
from workbench.engine.search.hypervolume import area, most_gain
from workbench.engine.search.judging import Choice
from workbench.engine.search.models import from_calibration
from workbench.engine.search.sensitivity import CosineSimilaritySensitivity, MSESensitivity
from workbench.engine.search.setup import SearchSetup
from workbench.engine.search.statistics import Statistics
from workbench.engine.search.surrogate import Surrogate, non_dominated
from workbench.engine.search.variant_table import variant_table
from workbench.engine.search.variants import changed, with_choices

CONV, DEPTHWISE, ODD, POOL, LINEAR = "0", "2", "3", "4", "6"


class Evaluator(AutoCalibrationEvaluatorBase):
    def __init__(self, data):
        self.data = data

    def calibration(self, model):
        model(self.data)


@pytest.fixture(scope="module")
def data():
    return torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def captured(data):
    torch.manual_seed(4)
    net = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.Conv2d(6, 5, 1),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(20, 3),
    ).eval()
    return capture(net, (data,))


ALLOWED = {
    "int4": {CONV, ODD, LINEAR},
    "int8": set(),
    "hfmg": {CONV, DEPTHWISE, ODD, POOL, LINEAR},
    "ifmr": set(),
    "ada": {CONV, DEPTHWISE, ODD, LINEAR},
    "per-tensor": {CONV, DEPTHWISE, ODD},
    "per-channel": set(),
    "int4+hfmg": {CONV, ODD, LINEAR},
}


@pytest.mark.parametrize("variant", ALLOWED)
def test_which_layers_allow_a_variant(captured, variant):
    config = default_config(captured.layers)
    able = {
        name
        for name, settings in config.layers.items()
        if changed(settings, captured.layers[name], variant) is not None
    }
    assert able == ALLOWED[variant]


def test_choices_change_only_what_they_name(captured):
    config = default_config(captured.layers)
    choices = {CONV: Choice(True, "int4+hfmg"), LINEAR: Choice(False)}
    mixed = with_choices(config, captured.layers, choices)
    assert mixed.layers[CONV].weight.num_bits == 4
    assert mixed.layers[CONV].activation.act_algo == "hfmg"
    assert mixed.layers[CONV].activation.num_bits == 8
    assert not mixed.layers[LINEAR].quant_enable
    assert {n: mixed.layers[n] for n in (DEPTHWISE, ODD, POOL)} == {
        n: config.layers[n] for n in (DEPTHWISE, ODD, POOL)
    }


@pytest.mark.parametrize("sensitivity", [CosineSimilaritySensitivity(), MSESensitivity()])
def test_mixed_records_are_those_of_a_calibration_of_the_mixture(captured, data, sensitivity):
    config = default_config(captured.layers)
    setup = SearchSetup(captured.module, captured, config, Evaluator(data), sensitivity)
    statistics = Statistics(setup, "")
    statistics.prepare()
    layers = tuple(config.layers)
    table = variant_table(setup, statistics, layers, ("int4", "hfmg", "per-tensor"))
    assert table.options[LINEAR] == (
        Choice(False),
        Choice(),
        Choice(True, "int4"),
        Choice(True, "hfmg"),
    )
    choices = {
        CONV: Choice(True, "int4"),
        DEPTHWISE: Choice(True, "per-tensor"),
        ODD: Choice(True, "hfmg"),
        POOL: Choice(),
        LINEAR: Choice(False),
    }
    cut = table.factors.key(choices)
    assert table.factors.choices(cut) == choices
    names = [entry for entry in table.factors.entries if entry not in cut]
    mixed = table.factors.selected(names).record

    calibration = Calibration(captured, with_choices(config, captured.layers, choices))
    calibration.model(data)
    real = calibration.finalize()
    assert set(mixed.layers) == set(real.layers) == set(layers) - {LINEAR}
    for name, record in real.layers.items():
        assert mixed.layers[name].scale_w == record.scale_w
        assert mixed.layers[name].wts_type == record.wts_type
        assert mixed.layers[name].scale_d == pytest.approx(record.scale_d, rel=0.1)
    # Nothing before the first layer differs.
    assert mixed.layers[CONV].scale_d == real.layers[CONV].scale_d
    with torch.no_grad():
        trial = table.factors.quantized(names)(data)
        exact = from_calibration(calibration).quantized(tuple(real.layers))(data)
    assert torch.allclose(trial, exact, atol=0.1 * float(exact.abs().max()))

    # The error of a layer alone: its output on its own float-side input.
    weight = calibration.folded.get_submodule(CONV)
    one = table.factors.selected(
        [e for e, (n, v) in table.factors.entries.items() if (n, v) == (CONV, "int4")]
    )
    layer = one.quantized([CONV]).get_submodule(CONV)
    with torch.no_grad():
        a, b = weight(data).double().ravel(), layer(data).double().ravel()
    cosine = float(a @ b / (a.norm() * b.norm()))
    assert table.errors[CONV, Choice(True, "int4")] == pytest.approx(1 - cosine, rel=1e-3)
    assert table.errors[CONV, Choice(True, "int4")] > 10 * table.errors[CONV, Choice()]


def test_calibrations_of_variants_are_kept(captured, data):
    calls = []

    class Counting(Evaluator):
        def calibration(self, model):
            calls.append(1)
            super().calibration(model)

    config = default_config(captured.layers)
    setup = SearchSetup(
        captured.module, captured, config, Counting(data), CosineSimilaritySensitivity()
    )
    tables = []
    for _ in range(2):
        statistics = Statistics(setup, "")
        statistics.prepare()
        tables.append(variant_table(setup, statistics, tuple(config.layers), ("int4",)))
    assert len(calls) == 2  # the configuration's own and the variant's
    assert tables[0].factors.record == tables[1].factors.record != Record()
    assert tables[0].errors == tables[1].errors


def test_the_surrogate_finds_every_front_point_of_a_sum():
    generator = np.random.default_rng(0)
    options = {name: (Choice(False), Choice(), Choice(True, "int4")) for name in "abcde"}
    losses = {(n, c): float(generator.uniform(0.01, 1)) for n, a in options.items() for c in a[1:]}
    parts = {
        n: {c: float(v) for c, v in zip(a, (-generator.uniform(0, 9, 3)), strict=True)}
        for n, a in options.items()
    }
    surrogate = Surrogate(options, losses, CostTable(100.0, parts))
    found = surrogate.front(1.0, {})
    points = []
    for combination in itertools.product(*options.values()):
        choices = dict(zip(options, combination, strict=True))
        loss = sum(losses.get(pair, 0.0) for pair in choices.items())
        points.append((loss, 100.0 + sum(parts[n][c] for n, c in choices.items())))
    front = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert [loss for _, loss in found] == pytest.approx(sorted((p[0] for p in front), reverse=True))
    held = surrogate.front(1.0, {"a": True, "b": False})
    assert all(c["a"].quantize and not c["b"].quantize for c, _ in held)

    # From trials it learns what the errors said wrong.
    wrong = Surrogate(options, dict.fromkeys(losses, 1.0), CostTable(100.0, parts))
    for combination in itertools.islice(itertools.product(*options.values()), 0, None, 7):
        choices = dict(zip(options, combination, strict=True))
        wrong.observe(choices, sum(losses.get(pair, 0.0) for pair in choices.items()))
    learnt = wrong.front(1.0, {})
    assert {frozenset(c.items()) for c, _ in learnt} >= {
        frozenset(c.items()) for c, _ in found[:: len(found) - 1]
    }


def test_area_and_gain_against_a_grid():
    generator = np.random.default_rng(1)
    points = [tuple(p) for p in generator.uniform(0, 1.2, (12, 2))]
    x, y = (np.mgrid[0:400, 0:400] + 0.5) / 400

    def share(chosen):
        beaten = np.zeros_like(x, bool)
        for a, b in chosen:
            beaten |= (x >= a) & (y >= b)
        return float(beaten.mean())

    assert area(points, (1.0, 1.0)) == pytest.approx(share(points), abs=0.01)
    assert area([], (1.0, 1.0)) == 0.0
    known = points[:3]
    best = most_gain(points[3:], known, (1.0, 1.0), 1)
    gains = [share([*known, p]) for p in points[3:]]
    assert gains[best[0]] == pytest.approx(max(gains), abs=0.005)


def test_non_dominated_keeps_one_of_equals():
    losses = np.array([0.3, 0.1, 0.1, 0.2, 0.5])
    costs = np.array([1.0, 2.0, 2.0, 3.0, 1.0])
    assert non_dominated(losses, costs).tolist() == [0, 1]
