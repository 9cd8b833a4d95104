"""Kill -9 in the middle of a search, start again: nothing is evaluated twice."""

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import search_case
import warm
from search_case import Sampled, Whole, read_log, search

from workbench.engine.search.cache import TrialCache

DAMAGE, MAX_LOSS = {"2": 0.02, "8": 0.03}, 0.01


def life(kind: str, folder: Path, die_at: str, strategy: str) -> subprocess.CompletedProcess[str]:
    return warm.run([search_case.__file__, kind, str(folder), die_at, strategy])


@pytest.mark.parametrize(
    ("kind", "strategy", "die_at"),
    [("Whole", "BinarySearch", "3"), ("Sampled", "Recover", "50")],
)
def test_a_killed_search_goes_on_where_it_was(tmp_path, kind, strategy, die_at):
    killed = life(kind, tmp_path, die_at, strategy)
    assert killed.returncode == -9, killed.stderr
    before = len(read_log(tmp_path / "calls.jsonl"))
    resumed = life(kind, tmp_path, "never", strategy)
    assert resumed.returncode == 0, resumed.stderr
    calls = read_log(tmp_path / "calls.jsonl")
    assert len(calls) > before, "the second life had something left to do"
    # The search itself is not calibrated again, only the accepted configuration is.
    assert sum(call[0] == "calibration" for call in calls) == 2
    # The last one is the accepted configuration with factors of its own: another network.
    seen: Counter[tuple[str, int]] = Counter()
    evaluations = [call for call in calls if call[0] != "calibration"]
    final = evaluations[-1][1]
    for call in evaluations:
        for sample in call[2] if kind == "Sampled" else [0]:
            seen[",".join(call[1]), sample] += 1
    allowed = {",".join(final): 2}
    assert all(count <= allowed.get(names, 1) for (names, _), count in seen.items())
    evaluator = {"Whole": Whole, "Sampled": Sampled}[kind](DAMAGE, MAX_LOSS)
    expected = search(evaluator, strategy=strategy)
    assert set(json.loads(resumed.stdout)) == set(expected.trials[-1].float_layers)


def test_a_repeated_search_only_calibrates_its_answer(tmp_path):
    first = search(Whole(DAMAGE, MAX_LOSS), cache=TrialCache(tmp_path))
    log = tmp_path / "calls.jsonl"
    again = search(Whole(DAMAGE, MAX_LOSS, str(log)), cache=TrialCache(tmp_path))
    assert [call[0] for call in read_log(log)] == ["calibration"]
    assert again.config == first.config and again.record == first.record
    assert again.ranking == first.ranking
    assert [t.loss for t in again.trials] == [t.loss for t in first.trials]
    assert all(trial.cached for trial in again.trials)
    assert again.equivalents == 0 < first.equivalents


def test_another_target_reuses_the_metrics_and_another_evaluator_does_not(tmp_path):
    search(Whole(DAMAGE, MAX_LOSS), cache=TrialCache(tmp_path))
    looser = Whole(DAMAGE, 0.05, str(tmp_path / "looser"))
    assert search(looser, cache=TrialCache(tmp_path)).config.enabled() == search_case.LAYERS
    assert [call[0] for call in read_log(tmp_path / "looser")] == ["calibration"]
    other = Whole({"4": 0.02}, MAX_LOSS, str(tmp_path / "other"))
    other.identity = "another"
    found = search(other, cache=TrialCache(tmp_path))
    assert "4" in found.trials[-1].float_layers
    assert "evaluate" in {call[0] for call in read_log(tmp_path / "other")}


def test_a_metric_that_json_cannot_hold_is_kept_as_its_judgement(tmp_path):
    class Complex(Whole):
        def evaluate(self, model):
            return complex(super().evaluate(model), 1.0)

        def metric_eval(self, original_metric, new_metric):
            return super().metric_eval(original_metric.real, new_metric.real)

    search(Complex(DAMAGE, MAX_LOSS), cache=TrialCache(tmp_path))
    log = tmp_path / "calls.jsonl"
    again = search(Complex(DAMAGE, MAX_LOSS, str(log)), cache=TrialCache(tmp_path))
    assert [call[0] for call in read_log(log)] == ["evaluate", "calibration"]  # the original
    assert again.satisfied
