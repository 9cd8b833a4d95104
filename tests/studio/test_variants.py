"""Named variants of the configuration: kept whole, taken up as one edit, compared."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from sample_layers import layer

from workbench.engine.errors import WorkbenchError, WrongType, WrongValue
from workbench.studio import Project, Session, open_session
from workbench.studio.columns import EDITABLE


def configuration(session: Session) -> pd.DataFrame:
    return session.layers[["name", *EDITABLE]]


def edited(session: Session) -> list[str]:
    """Edits of every kind; the names of four layers."""
    first, second, third, fourth = session.layers["name"].iloc[[0, 1, 2, 4]].tolist()
    session.set_flag([first], False)
    session.set_option([second], "act_algo", "hfmg")
    session.set_flag([first, third], False, "retrain_enable")
    session.set_flag([fourth], True, "prune_enable")
    session.set_option([fourth], "prune_ratio", 0.5)
    return [first, second, third, fourth]


def test_a_variant_comes_back_whole_as_one_edit_in_any_window(
    prepared: Callable[..., Project],
) -> None:
    project = prepared(6)
    session = Session(project)
    plain = configuration(session)
    session.variants.save("  as generated ")
    edited(session)
    mine = configuration(session)
    session.variants.save("mine")
    assert list(session.variants) == ["as generated", "mine"]
    assert [kept.name for kept in session.kept_variants] == ["as generated", "mine"]

    session.variants.use("as generated")
    pd.testing.assert_frame_equal(configuration(session), plain)
    session.undo()
    pd.testing.assert_frame_equal(configuration(session), mine)

    late = Session(Project.open(project.folder))  # a reload, another window
    assert list(late.variants) == ["as generated", "mine"]
    late.variants.use("as generated")
    late.variants.rename("mine", "best")
    session.poll()
    pd.testing.assert_frame_equal(configuration(session), plain)
    assert list(session.variants) == ["as generated", "best"]
    session.variants.use("best")
    late.poll()
    pd.testing.assert_frame_equal(configuration(late), mine)
    revision = late.revision
    late.variants.use("best")  # as it is already: no edit
    assert late.revision == revision
    late.variants.delete("best")
    session.poll()
    assert "best" not in session.variants
    pd.testing.assert_frame_equal(configuration(session), mine)


def test_names(session: Session) -> None:
    session.variants.save("a")
    session.toggle(session.layers["name"].iloc[0])
    with pytest.raises(WrongValue, match="'a' already"):
        session.variants.save("a")
    session.variants.use("a")
    assert session.layers["quant_enable"].iloc[0], "the refused one has changed nothing"
    session.undo()
    session.variants.save("a", overwrite=True)
    session.undo()
    session.variants.use("a")
    assert not session.layers["quant_enable"].iloc[0]
    session.variants.save("b")
    with pytest.raises(WrongValue, match="'b' already"):
        session.variants.rename("a", "b")
    for call in (session.variants.use, session.variants.delete, session.variants.compare):
        with pytest.raises(WrongValue, match="'c'.*Variants here: 'a', 'b'"):
            call("c")
    for name in ("", " ", "x" * 81, "a\nb"):
        with pytest.raises(WrongValue, match="cannot be the name"):
            session.variants.save(name)
    with pytest.raises(WrongType):
        session.variants.save(3)  # type: ignore[arg-type]
    assert list(session.variants) == ["a", "b"]


def test_two_variants_side_by_side(session: Session) -> None:
    session.variants.save("plain")
    first, second, third, fourth = edited(session)
    digest = session._follower.figures.hash()
    session.project.store.add_trial(
        1, phase="evaluate", kind="final", metric=0.91, loss=0.07, satisfied=True, seconds=1.0,
        float_layers=[first], config_hash=digest,
    )  # fmt: skip
    session.poll()
    summary = session.summary
    table = session.variants.compare("plain")
    assert table.columns.tolist() == ["plain", "current"]
    assert table.loc["layer"].to_dict("index") == {
        first: {"plain": "quantised", "current": "float: retrain_enable False"},
        second: {"plain": "quantised", "current": "quantised: act_algo hfmg"},
        third: {"plain": "quantised", "current": "quantised: retrain_enable False"},
        fourth: {"plain": "quantised", "current": "quantised: prune_enable True, prune_ratio 0.5"},
    }
    figures = table.loc["figure"]
    assert figures.loc["metric", "current"] == 0.91
    assert math.isnan(figures.loc["metric", "plain"])
    assert figures.loc["size", "current"] == summary.size_current
    assert figures.loc["bops", "current"] == summary.bops_current
    assert figures.loc["n_float"].tolist() == [0, 1]

    # What the page shows of a variant is what it shows after the switch.
    session.variants.save("edited")
    session.variants.use("plain")
    now = session.summary
    assert now.metric_is_prediction
    both = session.variants.compare("plain", "edited")
    assert both.loc[("figure", "predicted"), "plain"] == pytest.approx(now.metric_current)
    assert both.loc[("figure", "size"), "plain"] == now.size_current
    assert both.loc[("figure", "metric"), "edited"] == 0.91
    assert session.variants.table["n_float"].tolist() == [0, 1]
    assert session.variants.compare("plain", "plain").loc["figure"].shape == (5, 2)
    assert "layer" not in session.variants.compare("plain").index.get_level_values(0)


def test_a_variant_of_other_layers_is_refused_in_words(prepared: Callable[..., Project]) -> None:
    project = prepared(3)
    session = Session(project)
    session.variants.save("old")
    known = project.store.layers()
    renamed = dataclasses.replace(known[0], name="renamed")
    project.store.write_layers([renamed, *known[1:], layer(7)], project.source)
    session.poll()
    before = configuration(session)
    with pytest.raises(WrongValue) as raised:
        session.variants.use("old")
    text = str(raised.value)
    assert "'old' was made for other layers" in text
    assert f"1 of its layers are not in this model ({known[0].name})" in text
    assert "2 layers of this model are not in it (renamed" in text
    pd.testing.assert_frame_equal(configuration(session), before)
    assert session.variants.table["problem"].str.contains("other layers").all()
    session.variants.delete("old")


def test_every_value_of_a_stored_variant_is_checked(prepared: Callable[..., Project]) -> None:
    project = prepared(3)
    session = Session(project)
    session.variants.save("odd")
    row = project.store.connection.execute("SELECT facts FROM variants").fetchone()

    def store(facts: object) -> None:
        with project.store.write() as connection:
            connection.execute("UPDATE variants SET facts = ?", (json.dumps(facts),))

    facts = json.loads(row[0])
    facts["columns"]["wts_bits"][0] = 3
    facts["columns"]["prune_ratio"][1] = 1.5
    facts["columns"]["quant_enable"][2] = "yes"
    store(facts)
    with pytest.raises(WrongValue, match=r"3 is not allowed.*1\.5 is not allowed|not true or") as e:
        session.variants.use("odd")
    assert str(e.value).count("stage0") == 3
    for broken in ([], {"layers": []}, {**facts, "columns": {**facts["columns"], "dmq": [0.0]}}):
        store(broken)
        with pytest.raises(WorkbenchError, match="cannot be read|other layers"):
            session.variants.use("odd")


def test_the_script_writes_every_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session("digits-autoencoder", project=tmp_path / "p", threads=1)
    name = session.layers["name"].iloc[0]
    session.toggle(name)
    session.variants.save("first/float")
    first = json.loads(session.config_json())
    session.undo()
    session.set_option([session.layers["name"].iloc[1]], "act_algo", "hfmg")
    session.variants.save("First float")
    session.flush()
    text = session.project.log_path.read_text()
    session.dispose()
    head = text[: text.index("calibration = ")]
    tail = text[text.index("variants = ") :]
    monkeypatch.chdir(tmp_path)
    exec(compile(head + tail, "log.py", "exec"), {})
    written = sorted(path.name for path in (tmp_path / "reproduced" / "variants").iterdir())
    assert [name for name in written if "workbench" not in name] == [
        "First float.json", "first_float.json",
    ]  # fmt: skip
    found = json.loads((tmp_path / "reproduced" / "variants" / "first_float.json").read_text())
    assert found == first
