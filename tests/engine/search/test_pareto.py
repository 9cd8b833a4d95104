"""The front of a network whose every configuration's loss is known, and how it is searched."""

from __future__ import annotations

import builtins
from concurrent.futures import ThreadPoolExecutor

import pareto_case as toy
import pytest

from workbench.engine.errors import WrongState, WrongType, WrongValue
from workbench.engine.events import CancelToken, ParetoPointFound, TrialFinished
from workbench.engine.search.cache import TrialCache
from workbench.engine.search.judging import Choice
from workbench.engine.search.pareto import ParetoStrategy
from workbench.engine.search.result import SearchCancelled
from workbench.engine.search.strategies import resolve_strategy

COSTS = {"size": toy.size, "bops": toy.bit_operations}


def front_of(result):
    return [(p.loss, p.cost) for p in result.pareto if p.on_front]


@pytest.mark.parametrize(
    ("objective", "seed", "trials", "share"),
    [("size", 1, 60, 0.99), ("bops", 1, 60, 0.99), ("size", 2, 40, 0.95), ("bops", 3, 40, 0.95)],
)
def test_the_front_is_the_enumerated_one(objective, seed, trials, share):
    evaluator = toy.Additive(seed)
    events = []
    result = toy.search(evaluator, objective=objective, trials=trials, on_event=events.append)
    points = toy.everything(COSTS[objective], seed)
    most = max(cost for _, cost in points)
    for corner in ((max(loss for loss, _ in points), most), (2 * toy.MAX_LOSS, most)):
        best = toy.beaten_area(points, corner)
        assert toy.beaten_area(front_of(result), corner) >= share * best
    # original, all-INT8, one each trial (all-INT8 is known already), the accepted one for real
    assert evaluator.calls <= trials + 2
    assert evaluator.calibrations == 3
    cheapest = min(cost for loss, cost in points if loss <= toy.MAX_LOSS)
    accepted = min((p for p in result.pareto if p.satisfied), key=lambda p: p.cost)
    assert accepted.cost <= 1.05 * cheapest
    for point in result.pareto:
        assert point.cost == COSTS[objective](point.choices)
        loss = sum(toy.damages(seed)[name][c] for name, c in point.choices.items())
        assert point.loss == pytest.approx(loss, abs=1e-12)
        beaten = any(
            p.loss <= point.loss
            and p.cost <= point.cost
            and (p.loss, p.cost) != (point.loss, point.cost)
            for p in result.pareto
        )
        assert not (point.on_front and beaten)
        assert point.on_front or beaten or (point.loss, point.cost) in front_of(result)
    assert result.satisfied and result.objective == objective
    bits = {n: result.config.layers[n].weight.num_bits for n in result.config.enabled()}
    assert bits == {n: 4 if c.variant else 8 for n, c in accepted.choices.items() if c.quantize}
    assert {n: r.wts_bits for n, r in result.record.layers.items()} == bits
    assert dict(result.trials[-1].choices) == dict(accepted.choices)
    announced = [(e.loss, e.cost) for e in events if isinstance(e, ParetoPointFound)]
    assert set(front_of(result)) <= set(announced)
    finished = [e for e in events if isinstance(e, TrialFinished) and e.phase == "search"]
    assert len(finished) == trials - 1
    assert {v for e in finished for _, v in e.variants} == {"int4"}


def test_same_seed_same_search_and_workers_do_not_matter():
    alone = toy.summary(toy.search(toy.Additive(), trials=24))
    assert toy.summary(toy.search(toy.Additive(), trials=24)) == alone
    assert toy.summary(toy.search(toy.Additive(), trials=24, seed=1)) != alone
    with ThreadPoolExecutor(2) as executor:
        assert toy.summary(toy.search(toy.Additive(), trials=24, executor=executor)) == alone


def test_a_stopped_search_goes_on_where_it_was(tmp_path):
    whole = toy.Additive()
    expected = toy.summary(toy.search(whole, trials=24))
    token = CancelToken()
    first = toy.Additive(token=token, stop_at=13)
    with pytest.raises(SearchCancelled) as stopped:
        toy.search(first, trials=24, cache=TrialCache(tmp_path), cancel=token)
    assert stopped.value.config is not None and stopped.value.pareto
    second = toy.Additive()
    events = []
    result = toy.search(second, trials=24, cache=TrialCache(tmp_path), on_event=events.append)
    assert toy.summary(result) == expected
    assert first.calls + second.calls == whole.calls
    assert second.calibrations == 1  # of the accepted configuration
    third = toy.Additive()
    assert toy.summary(toy.search(third, trials=24, cache=TrialCache(tmp_path))) == expected
    assert third.calls == 0


def test_pins_hold_in_every_trial_and_in_the_answer():
    pins = {"1": False, "3": True}
    result = toy.search(toy.Additive(), trials=30, pins=lambda: pins)
    judged = [t for t in result.trials if t.phase != "all"]
    assert len(judged) > 20
    for trial in judged:
        assert trial.choices["1"] == Choice(False)
        assert trial.choices["3"].quantize
    assert {t.choices["3"].variant for t in judged} == {"", "int4"}
    assert "1" not in result.config.enabled() and "3" in result.config.enabled()


def test_a_small_space_is_searched_whole_and_no_more():
    pins = dict.fromkeys(toy.LAYERS[:-2], True)
    evaluator = toy.Additive()
    result = toy.search(evaluator, trials=1000, pins=lambda: pins)
    searched = {frozenset(t.choices.items()) for t in result.trials}
    assert len(searched) == 2 ** (len(toy.LAYERS) - 2) * 9


def test_a_target_that_nothing_reaches_leaves_everything_float():
    evaluator = toy.Additive()
    evaluator.max_loss = -1e-9
    evaluator.metric_eval = lambda original, new: (new >= original, original - new)
    result = toy.search(evaluator, trials=12)
    assert not result.satisfied and not result.config.enabled()
    assert [p.satisfied for p in result.pareto].count(True) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"objective": "speed"}, WrongValue, "'size', 'bops', 'latency'"),
        ({"pareto_trials": 0}, WrongValue, "1 and up"),
        ({"pareto_trials": 2.5}, WrongType, "a whole number"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        resolve_strategy("Pareto", **arguments)


def test_an_unknown_variant_is_named():
    with pytest.raises(WrongValue, match="'int5'.*int4"):
        ParetoStrategy(variants=("hfmg+int5",))


def test_without_optuna_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.split(".")[0] == "optuna":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(WrongState) as refused:
        resolve_strategy("Pareto")
    assert 'pip install "compression-workbench[search]"' in str(refused.value)
