"""The inspector on a real session: compare, look, use, undo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from studio_models import make_data, make_net

from workbench.engine.errors import WrongValue
from workbench.studio import open_session
from workbench.studio.session import Session
from workbench.widgets import LayerInspector, Workbench


def test_a_layer_is_compared_shown_and_changed(tmp_path: Path) -> None:
    session = open_session(make_net(), data=make_data(), project=tmp_path / "p", threads=1)
    inspector = LayerInspector(session, "conv2")
    assert list(inspector.layer.options) == ["conv1", "conv2", "fc"]
    assert inspector.results.layout.display == "none"
    session.inspect("conv2")
    assert inspector.results.layout.display == ""
    assert inspector.empty.layout.display == "none"
    assert "HFMG + DMQ 0.5" in inspector.table.value
    assert inspector.table.value.count("● in use") == 2
    profile = session.inspection("conv2").profile
    weights = inspector.charts[1].data[0]
    assert list(weights.base) == pytest.approx(list(profile.channel_low))
    choice = dict(inspector.choice.options)
    assert inspector.choice.value is not None
    assert "IFMR (activation)" not in choice, "what is in use cannot be chosen"
    inspector.choice.value = choice["HFMG (activation)"]
    inspector.use.click()
    assert session.config["conv2"].act_algo == "hfmg"
    assert "HFMG (activation)" not in dict(inspector.choice.options)
    session.undo()
    assert session.config["conv2"].act_algo == "ifmr"
    inspector.layer.value = "fc"
    assert inspector.results.layout.display == "none"
    inspector.dispose()
    session.dispose()


def test_it_follows_the_table_and_lets_go(
    make_session: Callable[..., Session], count_watchers: Callable[[Session], int]
) -> None:
    session = make_session()
    before = count_watchers(session)
    everything = Workbench(session)
    names = everything.inspector.layer.options
    everything.table.selected = names[2]
    assert everything.inspector.layer.value == names[2]
    everything.inspector.compare.click()
    assert "cannot start jobs" in everything.inspector.trouble.value
    everything.dispose()
    assert count_watchers(session) == before


def test_an_unknown_layer_is_refused(make_session: Callable[..., Session]) -> None:
    session = make_session()
    with pytest.raises(WrongValue, match="no layer"):
        LayerInspector(session, "nowhere")
