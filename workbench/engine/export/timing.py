"""How fast several files are, measured beside each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

from workbench.engine.events import CancelToken, check

MIN_ROUNDS, MAX_ROUNDS = 7, 50
SECONDS = 1.0


def time_in_turn(
    runs: Mapping[str, Callable[[], object]], *, cancel: CancelToken | None = None
) -> dict[str, tuple[float, float]]:
    """Median and interquartile range of each call in milliseconds; one call warms it up.

    Taking turns keeps a slow moment of the machine from counting against one file only.
    """
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    for run in runs.values():
        run()
    end = time.perf_counter() + SECONDS
    rounds = 0
    while rounds < MIN_ROUNDS or (rounds < MAX_ROUNDS and time.perf_counter() < end):
        for kind, run in runs.items():
            check(cancel)
            start = time.perf_counter()
            run()
            times[kind].append(1000.0 * (time.perf_counter() - start))
        rounds += 1
    results = {}
    for kind, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        results[kind] = (middle, high - low)
    return results
