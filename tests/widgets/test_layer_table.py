from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pruning_case
import pytest

from workbench.studio.project import Project
from workbench.studio.pruning_state import store_pruning
from workbench.studio.session import Session
from workbench.studio.source_spec import SourceSpec
from workbench.widgets import LayerTable, SensitivityChart

NAME = 3  # after the boxes


def shown(table: LayerTable) -> list[str]:
    return [row.children[NAME].description for row in table._boxes if row.layout.display != "none"]


def ticks(table: LayerTable) -> dict[str, bool]:
    return {
        row.children[NAME].description: row.children[0].value
        for row in table._boxes
        if row.layout.display != "none"
    }


def test_shows_what_the_session_knows(session: Session) -> None:
    table = LayerTable(session)
    assert shown(table) == list(session.layers["name"])
    assert sum(ticks(table).values()) == 11
    last = table._boxes[11]
    assert last.children[0].disabled
    assert "its &lt;weights&gt; are shared" in last.children[-1].value
    assert "2.00e-01" in table._boxes[2].children[-1].value
    assert "11 of 11 quantised" in table.count.value


def test_a_tick_is_an_edit_and_an_edit_is_a_tick(session: Session) -> None:
    first, second = LayerTable(session), LayerTable(session)
    first._boxes[3].children[0].value = False
    name = session.layers["name"][3]
    assert not session.layers["quant_enable"][3]
    assert ticks(second)[name] is False
    session.config[name].quant_enable = True
    assert ticks(first)[name] is True
    first.undo.click()
    assert ticks(second)[name] is False
    second.redo.click()
    assert ticks(first)[name] is True


def test_another_windows_edit_arrives_at_the_next_poll(session: Session, folder: Path) -> None:
    table = LayerTable(session)
    other = Session(Project.open(folder))
    other.toggle(session.layers["name"][0])
    assert ticks(table)[session.layers["name"][0]] is True
    session.poll()
    assert ticks(table)[session.layers["name"][0]] is False
    other.dispose()


def test_filter_pages_and_order(make_session: Callable[..., Session]) -> None:
    session = make_session(60)
    table = LayerTable(session)
    assert len(shown(table)) == 25
    table.next.click()
    assert shown(table)[0] == session.layers["name"][25]
    table.next.click()
    assert len(shown(table)) == 10
    assert table.next.disabled
    table.filter.value = r"stage1\."
    assert shown(table) == [n for n in session.layers["name"] if n.startswith("stage1.")]
    table.filter.value = "block1("  # no regular expression: taken as it stands
    assert shown(table) == []
    table.filter.value = ""
    table.type.value = "Linear"
    assert set(shown(table)) <= set(session.layers[session.layers["type"] == "Linear"]["name"])
    table.type.value = ""
    table.order.value = "worst first"
    assert shown(table)[0] == session.layers["name"][2]
    table.show.value = "not quantisable"
    assert shown(table) == [session.layers["name"][59]]


def test_bulk_edits_are_one_step_each(session: Session) -> None:
    table = LayerTable(session)
    table.filter.value = "stage0"
    table.skip.click()
    assert list(session.layers["quant_enable"][:5]) == [False] * 4 + [True]
    table.undo.click()
    assert session.layers["quant_enable"][:4].all()
    table.filter.value = ""
    table.worst.value = 1
    table.skip_worst.click()
    assert list(session.layers.index[session.layers["state"] == "skipped"]) == [2]
    table.quantise.click()
    assert session.layers["quant_enable"].sum() == 11


def test_what_cannot_be_done_is_said(make_session: Callable[..., Session]) -> None:
    session = make_session(measured=False)
    table = LayerTable(session)
    table.skip_worst.click()
    assert "session.analyse()" in table.trouble.value
    name = session.layers["name"][11]
    assert table.act(lambda: session.set_flag([name], True)) is None
    assert "weights" in table.trouble.value
    assert "<weights>" not in table.trouble.value
    assert table.trouble.layout.display == ""


def test_selecting_turns_to_the_page(make_session: Callable[..., Session]) -> None:
    session = make_session(60)
    table = LayerTable(session)
    table.selected = session.layers["name"][40]
    assert session.layers["name"][40] in shown(table)
    marked = [r.children[NAME].description for r in table._boxes if r.children[NAME].button_style]
    assert marked == [session.layers["name"][40]]
    table._boxes[0].children[NAME].click()
    assert table.selected == session.layers["name"][25]


def test_a_thousand_layers_need_no_more_widgets(make_session: Callable[..., Session]) -> None:
    session = make_session(1000)
    table = LayerTable(session)
    chart = SensitivityChart(session)
    assert len(table._boxes) == 25
    table._boxes[0].children[0].value = False
    table._boxes[1].children[0].value = False
    assert chart.figure.data[0].marker.color[1] != chart.figure.data[0].marker.color[3]


@pytest.mark.parametrize("how", ["dispose", "release"])
def test_leaves_nothing_behind(
    session: Session, count_watchers: Callable[[Session], int], how: str
) -> None:
    before = count_watchers(session)
    for _ in range(3):
        table = LayerTable(session)
        chart = SensitivityChart(session)
        assert count_watchers(session) > before
        getattr(table, how)()
        getattr(chart, how)()
        table.dispose()
        chart.dispose()
    assert count_watchers(session) == before
    session.toggle(session.layers["name"][0])


def test_a_view_that_fails_does_not_stop_the_others(session: Session) -> None:
    broken, table = LayerTable(session), LayerTable(session)
    broken._filtered = None  # type: ignore[method-assign, assignment]
    session.toggle(session.layers["name"][0])
    assert ticks(table)[session.layers["name"][0]] is False


def test_settings_of_all_layers_shown(session: Session) -> None:
    table = LayerTable(session)
    assert table.value.value is True  # what the menu shows first is chosen
    table.setting.value = "wts_algo"
    assert table.value.value == table.value.options[0][1]
    table.value.value = dict(table.value.options)["ADA"]
    table.set.click()
    able = session.layers[session.layers["eligible"]]
    assert set(able["wts_algo"]) == {"ada_quantize"}
    assert "IFMR / ADA" in table._boxes[0].children[-1].value
    table.setting.value = "dmq"
    assert [text for text, _ in table.value.options][:2] == ["off", "0.2"]
    table.value.value = 0.5
    table.set.click()
    assert "DMQ 0.5" in table._boxes[0].children[-1].value
    table.undo.click()
    assert "DMQ" not in table._boxes[0].children[-1].value


def test_training_and_pruning_are_ticked_beside_quantising(folder: Path) -> None:
    project = Project.create(folder, layers=pruning_case.layers())
    session = Session(project)
    store_pruning(project.store, pruning_case.pruning())
    session.poll()
    table = LayerTable(session)
    quantise, train, prune = table._boxes[1].children[:3]
    assert (quantise.value, train.value, prune.value) == (True, True, False)
    train.value = False
    assert session.layers["retrain_enable"].tolist() == [True, False, True, True]
    prune.value = True
    assert session.layers["prune_enable"].tolist() == [False, True, False, False]
    figures = [row.children[-1].value for row in table._boxes[:4]]
    assert ">0.20<" in figures[1] and ">0.20<" not in figures[0]
    assert ">4.5<" in figures[1], "the mean sensitivity of its channels"
    assert "pruning: its channels go with those of body.b: off" in figures[1]
    assert "outputs are those of the &lt;model&gt;" in figures[3]
    table.filter.value = "body"
    table.setting.value = "prune_ratio"
    table.value.value = 0.4
    table.set.click()
    table.setting.value = "prune_enable"
    table.set.click()
    assert session.prune_ratios() == {"body.a": 0.4, "body.b": 0.4}
    table.undo.click()
    assert session.prune_ratios() == {"body.a": 0.4}
    project.update_settings(source=SourceSpec("pt2", "net.pt2"))
    other = Session(Project.open(folder))
    train = LayerTable(other)._boxes[1].children[1]
    assert train.disabled and "cannot be trained. Open it from Python" in train.tooltip
    other.dispose()
    session.dispose()
