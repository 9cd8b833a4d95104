"""`Recover` on the planted networks: full evaluations, and layers above the smallest answer."""

from __future__ import annotations

import pytest

from workbench.engine.files.config import default_config
from workbench.engine.graph.capture import capture
from workbench.engine.search.auto_calibration import search_configuration
from workbench.engine.search.result import SearchResult
from workbench.zoo.planted import PLANTED, answers, load_planted


def search(name: str, *, early: bool = True) -> tuple[SearchResult, float]:
    """The result, and the full evaluations that the evaluator itself counted, without the first."""
    planted = load_planted(name)
    captured = capture(planted.example.model, planted.inputs)
    config = default_config(captured.layers, batch_num=1)
    result = search_configuration(
        planted.example.model, captured, config, planted.evaluator, strategy="Recover", early=early
    )
    counted = planted.evaluator.evaluated / planted.evaluator.sample_count - 1
    return result, counted


def above_minimum(name: str, result: SearchResult) -> int:
    assert result.satisfied
    floats = result.trials[-1].float_layers
    assert set(floats) == set(result.config.layers) - set(result.config.enabled())
    return len(floats) - int(answers()[name]["minimum"])


def test_the_vision_transformer() -> None:
    """Its fifth layer is one that no isolated similarity suspects."""
    result, counted = search("vit")
    assert above_minimum("vit", result) == 0
    assert counted <= 8
    assert result.equivalents == pytest.approx(counted)


@pytest.mark.slow
def test_all_of_them() -> None:
    above = {}
    for name in PLANTED:
        result, counted = search(name)
        above[name] = above_minimum(name, result)
        assert counted <= 8, name
    assert max(above.values()) <= 1, above
    assert list(above.values()).count(0) >= 0.8 * len(above), above


@pytest.mark.slow
def test_early_verdicts_evaluate_less_and_end_the_same() -> None:
    early, _ = search("mobilenet-hard")
    whole, _ = search("mobilenet-hard", early=False)
    assert set(early.trials[-1].float_layers) == set(whole.trials[-1].float_layers)
    shares = [trial.share for trial in early.trials]
    assert sum(shares) / len(shares) <= 0.6
    assert {trial.share for trial in whole.trials} == {1.0}
