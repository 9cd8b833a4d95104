from __future__ import annotations

from pathlib import Path

import pytest

from workbench.engine.files.sidecar import (
    Sidecar,
    TensorRange,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)


def test_round_trip_and_default(tmp_path: Path) -> None:
    record = tmp_path / "record.txt"
    assert read_sidecar(record) == Sidecar()
    sidecar = Sidecar(
        True, {"a": TensorRange(-1.5, 0.1), "b#add0": TensorRange(0, 1)}, {"x": [1, "y"]}
    )
    write_sidecar(record, sidecar)
    assert sidecar_path(record).name == "record.txt.workbench.json"
    assert read_sidecar(record) == sidecar
    assert not record.exists()


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"compat":1}', '{"ranges":[]}', '{"ranges":{"a":[1]}}', '{"ranges":{"a":[2,1]}}'],
)
def test_damaged_sidecars(tmp_path: Path, text: str) -> None:
    sidecar_path(tmp_path / "r").write_text(text)
    with pytest.raises(ValueError, match=r"workbench\.json"):
        read_sidecar(tmp_path / "r")
