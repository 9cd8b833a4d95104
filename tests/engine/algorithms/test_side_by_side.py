"""Parts side by side: in order, serial inside, and nothing else in the process changes."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch
from torch import Tensor

from workbench.engine.algorithms.side_by_side import Beside, sections, side_by_side


@pytest.mark.parametrize("count", [1, 999, 1000, 2001, 70_000])
def test_sections_hold_everything_in_order(threads: int, count: int) -> None:
    x = torch.arange(count)
    parts = sections(x, 1000, 64)
    assert torch.equal(torch.cat(parts), x)
    assert len(parts) == max(1, min(threads, count // 1000))
    assert all(part.numel() % 64 == 0 for part in parts[:-1])


def test_results_come_in_order_from_serial_threads(threads: int) -> None:
    def look(part: Tensor) -> tuple[int, int, str]:
        return int(part), torch.get_num_threads(), threading.current_thread().name

    found = side_by_side(look, torch.arange(20).split(1))
    assert [number for number, _, _ in found] == list(range(20))
    assert {inside for _, inside, _ in found} == {1}
    assert torch.get_num_threads() == threads
    own = threading.current_thread().name
    assert all((name == own) == (threads == 1) for _, _, name in found)
    # A thread that starts now computes as the process did before.
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [threads]


def test_an_error_in_a_part_is_raised(threads: int) -> None:
    def fail(part: Tensor) -> None:
        if int(part) == 5:
            raise ValueError("part 5")

    with pytest.raises(ValueError, match="part 5"):
        side_by_side(fail, torch.arange(8).split(1))


def test_jobs_are_done_in_their_order_on_one_serial_thread(threads: int) -> None:
    beside, done = Beside(3), []

    def job(number: int) -> None:
        done.append((number, torch.get_num_threads(), threading.current_thread().name))

    for number in range(8):
        beside.do(partial(job, number))
    beside.wait()
    assert [number for number, _, _ in done] == list(range(8))
    assert {inside for _, inside, _ in done} == {1}
    assert len({name for _, _, name in done}) == 1
    assert (done[0][2] == threading.current_thread().name) == (threads == 1)
    assert torch.get_num_threads() == threads


def test_few_jobs_wait(threads: int) -> None:
    beside, done = Beside(2), []
    for number in range(9):
        beside.do(partial(done.append, number))
        assert number + 1 - len(done) <= 4


def test_an_error_in_a_job_is_raised_once(threads: int) -> None:
    def fail() -> None:
        raise ValueError("a job")

    beside = Beside(5)
    beside.do(fail)
    with pytest.raises(ValueError, match="a job"):
        beside.wait()
    beside.wait()
