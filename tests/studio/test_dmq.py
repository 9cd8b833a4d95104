"""The DMQ balancer as a setting of a layer: edited, kept, calibrated, exported, written as code."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import warm

from workbench.engine.errors import WrongType, WrongValue
from workbench.engine.files.record import read_record
from workbench.studio import Change, Project, Session, open_session


def test_it_is_edited_undone_and_part_of_the_configuration(session: Session) -> None:
    name = session.layers["name"].iloc[1]
    assert session.layers["dmq"].tolist() == [0.0] * len(session.layers)
    before = session.quant_config()
    session.set_option([name], "dmq", 0.6)
    assert session.change == Change("dmq", (1,), (0.6,), session.revision)
    assert session.quant_config().layers[name].dmq_balancer_param == 0.6
    assert session.config[name].dmq == 0.6
    session.undo()
    assert session.quant_config() == before
    session.redo()
    session.set_option([name], "dmq", None)
    assert session.quant_config() == before


@pytest.mark.parametrize("value", [0, 0.0, None, math.nan])
def test_ways_to_say_none(session: Session, value: object) -> None:
    name = session.layers["name"].iloc[1]
    session.config[name].dmq = 0.5
    session.config[name].dmq = value
    assert session.config[name].dmq == 0.0
    assert "dmq" not in session.config_json()


@pytest.mark.parametrize(
    ("value", "error"),
    [(0.1, WrongValue), (0.9, WrongValue), ("0.5", WrongType), (True, WrongType)],
)
def test_what_is_not_allowed(session: Session, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="dmq"):
        session.set_option([session.layers["name"].iloc[1]], "dmq", value)


def test_measurements_belong_to_a_strength(session: Session) -> None:
    name = session.layers["name"].iloc[1]
    row = session.row(name)
    assert not math.isnan(session.layers["cosine"].iloc[row])
    session.set_option([name], "dmq", 0.5)
    assert math.isnan(session.layers["cosine"].iloc[row])
    session.undo()
    assert not math.isnan(session.layers["cosine"].iloc[row])


def test_a_project_from_before_is_brought_up_to_date(prepared: Callable[..., Project]) -> None:
    project = prepared()
    path = project.store.path
    project.close()
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE configuration DROP COLUMN dmq")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    session = Session(Project.open(project.folder))
    name = session.layers["name"].iloc[1]
    session.set_option([name], "dmq", 0.5)
    assert session.config[name].dmq == 0.5
    session.dispose()


def test_the_exported_record_and_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DMQ, HFMG and a layer with learned rounding, again in a fresh process."""
    session = open_session("digits-autoencoder", project=tmp_path / "p", threads=1)
    table = session.layers
    names = table[table["eligible"]]["name"].tolist()
    balanced, off = names[1:3], names[3]
    smallest = table[table["eligible"] & (table["parameters"] > 0)].nsmallest(1, "macs")
    session.set_option([*balanced, off], "dmq", 0.5)
    session.set_option(names[:2], "act_algo", "hfmg")
    session.set_option(smallest["name"].tolist(), "wts_algo", "ada_quantize")
    session.toggle(off)
    session.export()
    session.dispose()
    record = read_record(session.project.record_path)
    held = {name for name, entry in record.layers.items() if entry.tensor_balance_factor}
    assert held == set(balanced)
    done = warm.run([str(session.project.log_path)], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = tmp_path / "reproduced" / "ptq.record.txt"
    assert made.read_bytes() == session.project.record_path.read_bytes()
    assert "quantize_preprocess" in session.project.log_path.read_text()
