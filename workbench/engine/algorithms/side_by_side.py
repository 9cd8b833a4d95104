"""Parts of a tensor worked on side by side, each on a thread of its own.

What an operator of torch gains by a second thread, it loses on a part that takes 0.1 ms: the other
thread has to wake up first. So threads get whole parts, and torch runs serially in each.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def sections(values: Tensor, least: int, unit: int = 1) -> tuple[Tensor, ...]:
    """As many sections of a flat tensor as torch may use threads, each of ``least`` values or more.

    All but the last are multiples of ``unit``. A tensor on another device stays whole.
    """
    count = torch.get_num_threads() if values.device.type == "cpu" else 1
    count = max(1, min(count, values.numel() // least))
    size = -(-values.numel() // (count * unit)) * unit
    return torch.split(values, size) if count > 1 else (values,)


def side_by_side(function: Callable[[Tensor], Result], parts: Sequence[Tensor]) -> list[Result]:
    """``function`` of every part, in their order; the first error is raised.

    With torch on one thread, and for tensors on another device, the parts are done one after
    another on the calling thread.
    """
    on_device = any(part.device.type != "cpu" for part in parts)
    if len(parts) == 1 or torch.get_num_threads() == 1 or on_device:
        return [function(part) for part in parts]
    return list(_pool().map(function, parts))


class Beside:
    """Jobs done later and in their order, ``bunch`` at a time, on a thread beside the caller's.

    At most twice as many wait. With torch on one thread the caller does them. Small jobs take half
    the time in a bunch: between two layers of a network their code has left the cache. Those of one
    ``lane`` are done on the same thread.
    """

    def __init__(self, bunch: int, lane: int = 0) -> None:
        self._bunch = bunch
        self._lane = lane
        self._waiting: list[Callable[[], None]] = []
        self._running: Future[None] | None = None

    def do(self, job: Callable[[], None]) -> None:
        """Hand over a job. The first error of those before may be raised here or by ``wait``."""
        self._waiting.append(job)
        if len(self._waiting) >= self._bunch:
            self.start()

    def wait(self) -> None:
        """Return when all are done."""
        self.start()
        self._finish()

    def start(self) -> None:
        """Do not wait for more of them."""
        self._finish()
        jobs, self._waiting = self._waiting, []
        if torch.get_num_threads() == 1:
            _do_all(jobs)
        elif jobs:
            self._running = _thread(self._lane).submit(_do_all, jobs)

    def _finish(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()


def _do_all(jobs: Sequence[Callable[[], None]]) -> None:
    for job in jobs:
        job()


@cache
def _pool() -> ThreadPoolExecutor:
    return _started(torch.get_num_threads(), "workbench-part")


@cache
def _thread(lane: int) -> ThreadPoolExecutor:
    return _started(1, f"workbench-beside-{lane}")


def _started(count: int, name: str) -> ThreadPoolExecutor:
    before = torch.get_num_threads()
    running = threading.Barrier(count)
    pool = ThreadPoolExecutor(count, name, _compute_serially)
    list(pool.map(lambda _: running.wait(), range(count)))
    # Threads that somebody starts later take the number that was set last.
    torch.set_num_threads(before)
    return pool


def _compute_serially() -> None:
    # At its first use a thread takes the process's number, whatever it was told before.
    torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)


if hasattr(os, "register_at_fork"):
    # A forked process has the pool but not its threads.
    os.register_at_fork(after_in_child=_pool.cache_clear)
    os.register_at_fork(after_in_child=_thread.cache_clear)
