"""Trials in processes and on a Dask cluster: the answer of one process, whoever evaluates."""

import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import torch
from search_case import Sampled, Whole, search

from workbench.engine.search.cache import TrialCache
from workbench.engine.search.workers import Workers

DAMAGE, MAX_LOSS = {"2": 0.02, "8": 0.03}, 0.01


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        yield pool


@pytest.fixture(scope="module")
def client():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(2)
        yield client


def story(result):
    return (
        [(t.float_layers, t.satisfied, t.loss, t.metric, t.phase, t.share) for t in result.trials],
        result.config.digest(),
        dict(result.ranking),
        result.record,
    )


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", [Whole, Sampled])
@pytest.mark.parametrize("strategy", ["BinarySearch", "Greedy", "Recover"])
def test_processes_give_the_answer_of_one(processes, kind, strategy):
    alone = search(kind(DAMAGE, MAX_LOSS), strategy=strategy)
    shared = search(kind(DAMAGE, MAX_LOSS), strategy=strategy, executor=processes)
    assert story(shared) == story(alone)


@pytest.mark.parametrize("with_client", [True, False])
def test_a_dask_cluster_gives_the_answer_of_one(client, with_client):
    alone = search(Sampled(DAMAGE, MAX_LOSS), strategy="BinarySearch")
    executor = client if with_client else client.get_executor()
    shared = search(Sampled(DAMAGE, MAX_LOSS), strategy="BinarySearch", executor=executor)
    assert story(shared) == story(alone)


def test_what_workers_found_is_cached(tmp_path, processes):
    search(Sampled(DAMAGE, MAX_LOSS), executor=processes, cache=TrialCache(tmp_path))
    log = tmp_path / "calls"
    evaluator = Sampled(DAMAGE, MAX_LOSS, str(log))
    search(evaluator, cache=TrialCache(tmp_path))
    assert "samples" not in log.read_text()


def test_an_evaluator_that_cannot_travel_is_named():
    evaluator = Whole(DAMAGE, MAX_LOSS)
    evaluator.lock = threading.Lock()
    with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="cannot be sent"):
        search(evaluator, executor=pool)


def test_an_error_of_the_evaluator_comes_back(processes):
    with pytest.raises(TypeError):
        search(Whole({"2": "much"}, MAX_LOSS), executor=processes)


def test_other_things_are_no_executor():
    with pytest.raises(TypeError, match="executor"):
        Workers(4)
