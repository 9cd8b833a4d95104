"""What a window shows outlives its page: of the same project, without what no longer fits."""

from __future__ import annotations

import json
from pathlib import Path

import panel as pn
import panel_material_ui as pmui
import pytest

from workbench.app.fold import Fold
from workbench.app.kept_window import MOST_KEPT, KeptWindow, windows_folder
from workbench.app.search_settings import SearchSettings
from workbench.app.train_settings import TrainSettings
from workbench.app.window import EXPORT_TAB, LAYERS_TAB, TRAIN_TAB


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))


def left_window() -> KeptWindow:
    window = KeptWindow("net")
    window.state.param.update(
        pattern="conv", threshold=0.9, selected=("a", "b"), tab=3, dark=True, notice="gone"
    )
    window.state.settings(SearchSettings).max_loss_percent = 2.5
    training = window.state.settings(TrainSettings)
    training.method = "distill"
    training.learning_rate = 0.005  # not the method's own
    window.write()
    return window


def test_a_window_comes_back_as_it_was() -> None:
    left = left_window()
    found = KeptWindow("net", left.ticket)
    state = found.state
    assert found.ticket == left.ticket
    assert (state.pattern, state.threshold, state.selected) == ("conv", 0.9, ("a", "b"))
    assert (state.tab, state.dark, state.notice) == (3, True, "")
    assert state.settings(SearchSettings).max_loss_percent == 2.5
    training = state.settings(TrainSettings)
    assert (training.method, training.learning_rate) == ("distill", 0.005)
    assert state.settings(TrainSettings) is training

    # Settings whose form was not opened again are kept all the same.
    once_more = KeptWindow("net", left.ticket)
    once_more.state.tab = 4
    once_more.write()
    assert KeptWindow("net", left.ticket).state.settings(TrainSettings).method == "distill"


@pytest.mark.parametrize("ticket", ["", "../../etc/passwd", "a" * 5000])
def test_what_is_no_ticket_is_a_new_window(ticket: str) -> None:
    found = KeptWindow("net", ticket)
    assert found.ticket != ticket and found.state.pattern == ""


def test_a_window_in_which_nothing_changed_keeps_its_ticket_and_nothing_else() -> None:
    left = KeptWindow("net")
    left.write()
    assert not windows_folder().exists(), "nothing has changed yet"
    # Another ticket would make the page believe that its own had come too late, and load again.
    assert KeptWindow("net", left.ticket).ticket == left.ticket


def test_a_ticket_is_for_one_project() -> None:
    left = left_window()
    other = KeptWindow("other", left.ticket)
    assert other.ticket != left.ticket and other.state.pattern == ""


def test_the_address_says_which_tab_is_first() -> None:
    assert KeptWindow("net", tab="train").state.tab == TRAIN_TAB
    assert KeptWindow("net", tab="gone").state.tab == LAYERS_TAB
    left = left_window()
    assert KeptWindow("other", left.ticket, "export").state.tab == EXPORT_TAB
    assert KeptWindow("net", left.ticket, "export").state.tab == 3, "as it was left"


def test_what_no_longer_fits_is_left_out() -> None:
    left = left_window()
    left.path.write_text(
        json.dumps(
            {
                "project": "net",
                "window": {
                    "tab": 99, "threshold": "high", "order": "sorted", "unknown": 1,
                    "left": {"SearchSettings": {"strategy": "gone"}, "menu": "gone", "number": 7},
                },
            }
        )
    )  # fmt: skip
    state = KeptWindow("net", left.ticket).state
    assert (state.tab, state.threshold, state.order) == (1, 0.99, "sorted")
    assert state.settings(SearchSettings).strategy == "Recover"
    menu = pmui.Select(options={"First": "one"}, value="one")
    number = pmui.IntInput(value=3)
    state.keep("menu", menu)
    state.keep("number", number)
    assert (menu.value, number.value) == ("one", 7)
    number.value = 8
    assert state.values_kept()["left"]["number"] == 8
    left.path.write_text("{")
    assert KeptWindow("net", left.ticket).state.pattern == ""


def test_only_the_newest_windows_are_kept() -> None:
    windows_folder().mkdir()
    for index in range(MOST_KEPT):
        (windows_folder() / f"{index}.json").write_text("{}")
    left = left_window()
    assert len(list(windows_folder().iterdir())) == MOST_KEPT
    assert left.path.exists()


def test_a_full_disk_costs_only_what_the_window_showed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(**_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkstemp", full)
    left = left_window()
    assert "could not be kept" in caplog.text
    assert KeptWindow("net", left.ticket).state.pattern == ""


def test_folds_and_chosen_rows_come_back() -> None:
    left = KeptWindow("net")
    fold = Fold(left.state, "train", pn.Column)
    assert not len(fold.body) and fold.button.label == "More settings"
    fold.button.clicks += 1
    left.state.param.update(trials=(1, 4), rows=("job 2",))
    left.write()

    state = KeptWindow("net", left.ticket).state
    assert (state.trials, state.rows) == ((1, 4), ("job 2",))
    again = Fold(state, "train", pn.Column)
    assert again.body.visible and len(again.body) == 1 and again.button.label == "Fewer settings"
    assert not Fold(state, "prune", pn.Column).body.visible
    again.button.clicks += 1
    assert not again.body.visible and state.unfolded == ()
