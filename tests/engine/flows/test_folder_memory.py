"""A decoder of 1 B parameters out of a folder, in a process of its own: its size and a gigabyte."""

from pathlib import Path

import pytest

from benchmarks import folder as bench


@pytest.mark.slow
def test_a_billion_parameters_stay_within_their_size_and_a_gigabyte(tmp_path: Path) -> None:
    size = bench.write_model(tmp_path / "float") / bench.GIGABYTE
    assert size > 2.0
    peak, _ = bench.measured("folder", tmp_path / "float")
    assert 0 < peak <= size + 1.0
    assert (tmp_path / "float-small").is_dir()
