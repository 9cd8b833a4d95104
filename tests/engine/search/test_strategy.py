"""Binary search against the specification's traces (chapter 20 section 6.4)."""

import math

import pytest

from workbench.engine.search.strategy import BinarySearchStrategy

TRACES = [
    (1, 1, "ALL"),
    (2, 1, "1"),
    (2, 2, "1 ALL"),
    (3, 1, "2 1"),
    (3, 2, "2 1 re2"),
    (4, 3, "2 3"),
    (4, 4, "2 3 ALL"),
    (5, 2, "3 1 2"),
    (5, 3, "3 1 2 re3"),
    (5, 5, "3 4 ALL"),
    (8, 1, "4 2 1"),
    (8, 5, "4 6 5"),
    (8, 6, "4 6 5 re6"),
    (8, 8, "4 6 7 ALL"),
]


def trace(layers: int, smallest: int) -> tuple[list[str], int]:
    """Probes of a search whose configurations pass from ``smallest`` float layers on."""
    strategy = BinarySearchStrategy()
    strategy.initialize({f"l{i}": i / layers for i in range(layers)})
    probes: list[str] = []
    passed, last = False, None
    while True:
        proposal = strategy.update_quant_config((passed, 0.0))
        config = proposal["roll_back_config"]
        floats = [name for name, on in config.items() if not on]
        assert floats == [f"l{i}" for i in range(len(floats))]
        count = len(floats)
        if proposal["stop_flag"]:
            if count != last:
                probes.append(f"re{count}")
            return probes, count
        if count == layers:
            return [*probes, "ALL"], count
        probes.append(str(count))
        passed, last = count >= smallest, count


@pytest.mark.parametrize(("layers", "smallest", "expected"), TRACES)
def test_traces_of_the_specification(layers, smallest, expected):
    assert trace(layers, smallest)[0] == expected.split()


@pytest.mark.parametrize("layers", range(1, 33))
def test_finds_the_smallest_passing_number_within_the_bound(layers):
    for smallest in range(1, layers + 1):
        probes, answer = trace(layers, smallest)
        assert answer == smallest
        reruns = [p for p in probes if p.startswith("re")]
        assert len(reruns) <= 1
        assert len(probes) - len(reruns) <= math.ceil(math.log2(layers)) + 1


def test_of_equally_sensitive_layers_the_earlier_goes_first():
    strategy = BinarySearchStrategy()
    strategy.initialize({"a": 0.9, "b": 0.5, "c": 0.5, "d": 0.99})
    config = strategy.update_quant_config((False, 0.1))["roll_back_config"]
    assert config == {"b": False, "c": False, "a": True, "d": True}
