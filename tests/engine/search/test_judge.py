"""What strategies get from the judge: pins, scores, early verdicts, what it all cost."""

import numpy as np
import pytest
from search_case import LAYERS, Sampled, Whole, search

from workbench.engine.events import CancelToken, Notice, RankingKnown, SearchPhase, TrialFinished
from workbench.engine.search.judging import Choice
from workbench.engine.search.result import SearchCancelled
from workbench.engine.search.strategy import AutoCalibrationStrategyBase

DAMAGE, MAX_LOSS = {"2": 0.02, "8": 0.03}, 0.01


class Asking:
    """A strategy that runs a function of the judge and answers with what it returns."""

    def __init__(self, ask):
        self.ask = ask

    def search(self, judge, first):
        return self.ask(judge, first)


def test_scores_are_the_evaluators_and_cost_their_share():
    evaluator = Sampled(DAMAGE, MAX_LOSS)
    found = {}

    def ask(judge, first):
        before = judge.equivalents
        found["some"] = judge.scores(["2"], [5, 3, 700])
        found["cost"] = judge.equivalents - before
        found["all"] = judge.scores(["2"])
        found["cost of all"] = judge.equivalents - before
        found["original"] = judge.scores(None)
        judge.scores(["2"], range(100))
        found["cost at the end"] = judge.equivalents - before
        found["trial"] = judge.trial(["2"], full=True)
        found["cost of the trial"] = judge.equivalents - before
        found["max_loss"], found["layers"] = judge.max_loss, judge.layers
        return ["2", "8"]

    result = search(evaluator, strategy=Asking(ask))
    expected = evaluator.scores([name for name in LAYERS if name != "2"])
    assert np.array_equal(found["all"], expected)
    assert np.array_equal(found["some"], expected[[5, 3, 700]])
    assert np.array_equal(found["original"], np.ones(2000))
    assert found["cost"] == pytest.approx(3 / 2000)
    for key in ("cost of all", "cost at the end", "cost of the trial"):
        assert found[key] == pytest.approx(1.0)
    assert found["trial"].loss == pytest.approx(0.03) and not found["trial"].satisfied
    assert found["max_loss"] == MAX_LOSS and found["layers"] == LAYERS
    # Everything quantised, the asked one, the final one; the original is free.
    assert result.equivalents == pytest.approx(3.0)


def test_without_samples_there_are_no_scores_and_a_trial_costs_one():
    costs = []

    def ask(judge, first):
        assert judge.scores(None) is None and judge.scores(["2"]) is None
        for _ in range(2):
            judge.trial(["2"])
            costs.append(judge.equivalents)
        return ["2", "8"]

    search(Whole(DAMAGE, MAX_LOSS), strategy=Asking(ask))
    assert costs == [2.0, 2.0]


def test_early_verdicts_are_right_cheaper_and_can_be_refused():
    full = search(Sampled(DAMAGE, MAX_LOSS), early=False)
    early = search(Sampled(DAMAGE, MAX_LOSS))
    assert early.config == full.config
    assert [t.satisfied for t in early.trials] == [t.satisfied for t in full.trials]
    assert early.equivalents < 0.75 * full.equivalents
    assert {t.share for t in full.trials} == {1.0}
    judged = [t for t in early.trials if t.phase == "search"]
    assert any(t.share < 1.0 for t in judged)
    assert early.trials[0].share == early.trials[-1].share == 1.0


def test_without_a_maximal_loss_every_sample_is_evaluated():
    class Relative(Sampled):
        @property
        def max_loss(self):
            return None

        @max_loss.setter
        def max_loss(self, value):
            self.limit = value

        def metric_eval(self, original_metric, new_metric):
            return new_metric >= original_metric * (1 - self.limit), original_metric - new_metric

    assert {t.share for t in search(Relative(DAMAGE, MAX_LOSS)).trials} == {1.0}


def test_pins_hold_layers_whatever_is_proposed():
    pins = {"8": False, "2": True}
    result = search(Whole({"2": 0.005, "4": 0.02, "8": 0.03}, MAX_LOSS), pins=lambda: pins)
    answer = set(result.trials[-1].float_layers)
    assert "8" in answer and "2" not in answer and "4" in answer
    for trial in result.trials[1:]:
        assert "8" in trial.float_layers and "2" not in trial.float_layers


def test_a_pin_for_float_holds_although_everything_quantised_passes():
    result = search(Whole({}, MAX_LOSS), pins=lambda: {"4": False})
    assert result.trials[-1].float_layers == ("4",) and result.satisfied
    assert result.trials[0].float_layers == ()


def test_pins_may_change_while_the_search_runs():
    pins: dict[str, bool] = {}
    seen = []

    def ask(judge, first):
        judge.trial(["2"])
        pins["10"] = False
        seen.append(judge.trial(["2"]).float_layers)
        return ["2", "8"]

    result = search(Whole(DAMAGE, MAX_LOSS), strategy=Asking(ask), pins=lambda: pins)
    assert set(seen[0]) == {"2", "10"}
    assert set(result.trials[-1].float_layers) == {"2", "8", "10"}


@pytest.mark.parametrize("strategy", ["BinarySearch", "Greedy", "Recover"])
def test_pins_that_cannot_pass_end_with_everything_in_float(strategy):
    result = search(Whole(DAMAGE, MAX_LOSS), strategy=strategy, pins=lambda: {"8": True})
    assert not result.satisfied and result.calibration is None
    assert not result.config.enabled()


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="nine"):
        search(Whole(DAMAGE, MAX_LOSS), pins=lambda: {"nine": True})
    with pytest.raises(ValueError, match="nine"):
        search(Whole(DAMAGE, MAX_LOSS), strategy=Asking(lambda judge, first: ["nine"]))


def test_a_users_proposing_strategy():
    class OneByOne:
        """Tries each layer alone, then all that helped."""

        def __init__(self):
            self.told = []

        def propose(self, history):
            tried = len(history) - 1
            if tried < len(LAYERS):
                return {LAYERS[tried]: Choice(quantize=False)}
            if tried == len(LAYERS):
                base = history[0].loss
                helped = [t for t in history[1:] if t.loss < base - 1e-9]
                return {name: Choice(quantize=False) for t in helped for name in t.float_layers}
            return None

        def observe(self, trial):
            self.told.append(trial)

    strategy = OneByOne()
    result = search(Whole(DAMAGE, 0.001), strategy=strategy)
    assert set(result.trials[-1].float_layers) == {"2", "8"}
    assert [t.satisfied for t in strategy.told] == [False] * 6 + [True]


def test_a_variant_that_does_not_exist_is_refused():
    class Wrong:
        def propose(self, history):
            return {"2": Choice(variant="int4")}

        def observe(self, trial):
            pass

    with pytest.raises(ValueError, match="int4"):
        search(Whole(DAMAGE, MAX_LOSS), strategy=Wrong())


def test_a_users_reference_strategy_sees_whole_losses_and_bad_ones_are_named():
    class Strategy(AutoCalibrationStrategyBase):
        def initialize(self, ranking):
            self.ranking, self.losses = ranking, []

        def update_quant_config(self, metric_eval):
            self.losses.append(metric_eval)
            done = len(self.losses) == 2
            off = {"2", "8"} if done else {"2"}
            config = {name: name not in off for name in self.ranking}
            return {"stop_flag": done, "roll_back_config": config}

    strategy = Strategy()
    result = search(Sampled(DAMAGE, MAX_LOSS), strategy=strategy)
    assert list(strategy.ranking) == list(LAYERS)
    assert [round(loss, 9) for _, loss in strategy.losses] == [0.05, 0.03]
    assert set(result.trials[-1].float_layers) == {"2", "8"}

    class Bad(Strategy):
        def update_quant_config(self, metric_eval):
            return [True]

    with pytest.raises(TypeError, match="update_quant_config"):
        search(Whole(DAMAGE, MAX_LOSS), strategy=Bad())


def test_evidence_against_monotonicity_is_reported():
    class Odd(Whole):
        """The third layer in float makes things worse."""

        def evaluate(self, model):
            from search_case import names

            return 1.0 - (len(names(model)) in (6, 3))

    def ask(judge, first):
        ranked = sorted(judge.ranking, key=lambda name: judge.ranking[name])
        for cut in (2, 3):
            judge.trial(ranked[:cut])
        return ranked[:2]

    events = []
    search(Odd({}, MAX_LOSS), strategy=Asking(ask), on_event=events.append)
    notices = [e.message for e in events if isinstance(e, Notice)]
    assert any("more float layers can be worse" in text for text in notices)


def test_cancelled_it_says_what_was_best_so_far():
    token = CancelToken()

    def on_event(event):
        if isinstance(event, TrialFinished) and event.phase == "search" and event.satisfied:
            token.cancel()

    with pytest.raises(SearchCancelled) as caught:
        search(Whole(DAMAGE, MAX_LOSS), strategy="Greedy", on_event=on_event, cancel=token)
    assert caught.value.config is not None
    off = set(LAYERS) - set(caught.value.config.enabled())
    assert {"2", "8"} <= off or "8" in off
    assert caught.value.trials[-1].satisfied and caught.value.ranking


def test_phases_come_in_order_and_the_ranking_once():
    events = []
    search(Whole(DAMAGE, MAX_LOSS), on_event=events.append)
    phases = [e.phase for e in events if isinstance(e, SearchPhase)]
    assert phases == ["original", "calibration", "all", "sensitivity", "search", "final"]
    assert sum(isinstance(e, RankingKnown) for e in events) == 1


def test_a_ranking_is_only_made_when_needed():
    events = []
    result = search(Whole({}, MAX_LOSS), write_ranking="needed", on_event=events.append)
    assert result.satisfied and not result.ranking
    assert not any(isinstance(e, RankingKnown) for e in events)
    assert search(Whole(DAMAGE, MAX_LOSS), write_ranking="needed").ranking


@pytest.mark.parametrize("option", [{"write_ranking": "never"}, {"evaluate_backend": "jax"}])
def test_unknown_options_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        search(Whole(DAMAGE, MAX_LOSS), **option)


def test_samples_without_a_score_are_named():
    class Forgetful(Sampled):
        def evaluate_samples(self, model, indices=None):
            yield from list(super().evaluate_samples(model, indices))[1:]

    with pytest.raises(ValueError, match="evaluate_samples gave no score"):
        search(Forgetful(DAMAGE, MAX_LOSS))
