"""A project's search by samples: the same metric, and nothing evaluated twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from studio_models import make_data, make_net
from torch import nn

from workbench.engine.events import CancelToken
from workbench.engine.search.measuring import has_samples
from workbench.studio import metrics, open_session
from workbench.studio.evaluator import studio_evaluator
from workbench.studio.metrics import Batch
from workbench.studio.sources import LoadedSource


def loaded(metric: str, *, sizes: tuple[int, ...] = (5, 5, 3)) -> LoadedSource:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval()
    other = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval()
    batches = [Batch((torch.randn(n, 3, 4),), torch.randint(0, 4, (n,))) for n in sizes]
    chosen = metrics.resolve(metric, reference=other, batches=batches)
    return LoadedSource("net", "data", net, [batches[0].inputs], batches, chosen)


@pytest.mark.parametrize("metric", ["top1", "cosine"])
def test_the_mean_of_the_scores_is_the_metric(metric: str) -> None:
    source = loaded(metric)
    evaluator = studio_evaluator(source, True, 0.01, lambda event: None, CancelToken())
    assert has_samples(evaluator) and evaluator.sample_count == 13  # type: ignore[attr-defined]
    scores = dict(evaluator.evaluate_samples(source.model))  # type: ignore[attr-defined]
    assert sorted(scores) == list(range(13))
    assert sum(scores.values()) / 13 == pytest.approx(evaluator.evaluate(source.model), abs=1e-9)
    some = dict(evaluator.evaluate_samples(source.model, [12, 0, 6]))  # type: ignore[attr-defined]
    assert list(some) == [12, 0, 6]
    assert all(score == pytest.approx(scores[i], abs=1e-9) for i, score in some.items())


def test_metrics_that_are_no_mean_and_batches_that_do_not_mix_are_evaluated_whole() -> None:
    arguments = (0.01, lambda event: None, CancelToken())
    assert not has_samples(studio_evaluator(loaded("psnr"), True, *arguments))
    assert not has_samples(studio_evaluator(loaded("top1"), False, *arguments))
    mixed = loaded("top1")
    mixed.evaluation.append(Batch((torch.randn(2, 4, 3),), torch.zeros(2, dtype=torch.int64)))
    assert not has_samples(studio_evaluator(mixed, True, *arguments))


def test_a_second_search_of_a_project_evaluates_nothing_again(tmp_path: Path) -> None:
    session = open_session(make_net(), data=make_data(), project=tmp_path / "p", threads=1)
    session.auto_calibrate(max_loss=0.0)
    first = session.trials
    answer = session.config_json()
    session.auto_calibrate(max_loss=0.0)
    both = session.trials
    again = both.iloc[len(first) :]
    assert session.config_json() == answer
    assert again["metric"].tolist() == first["metric"].tolist()
    assert again["seconds"].tolist() == first["seconds"].tolist(), "kept from the first time"
