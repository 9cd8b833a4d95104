from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pruning_case
import pytest
from marked import Marked, unmarked, widget_texts

from workbench.charts.text import speaking
from workbench.studio.project import Project
from workbench.studio.pruning_state import as_stored
from workbench.studio.session import Session
from workbench.widgets import DecompositionPanel


@pytest.fixture
def project(folder: Path) -> Project:
    return Project.create(folder, layers=pruning_case.layers())


def test_from_a_dry_run_to_the_new_project(
    project: Project, tmp_path: Path, count_watchers: Callable[[Session], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    session = Session(project)
    before = count_watchers(session)
    panel = DecompositionPanel(session)
    assert "The dry run says" in panel.note.value
    assert panel.table.value == panel.totals.value == panel.result.value == ""
    project.store.put(decomposition=as_stored(pruning_case.decomposition()))
    session.poll()
    assert "1 of 2 convolutions would be decomposed" in panel.note.value
    assert "50.0 k →" in panel.totals.value and "<b>25.4 k</b>" in panel.totals.value
    rows = panel.table.value.split("<tr>")[2:]
    assert "fewer than 64 &lt;channels&gt;" in rows[0]
    assert "<td>32</td>" in rows[1] and "36.9 k → 12.3 k" in rows[1] and "12.5 %" in rows[1]

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(session, "decompose", lambda **options: asked.append(options))
    panel.try_it.click()
    panel.rule.value = "energy"
    panel.energy.value = 0.8
    panel.start.click()
    assert asked == [
        {"dry_run": True, "rank_rule": "compat", "energy": 0.9, "wait": False},
        {"dry_run": False, "rank_rule": "energy", "energy": 0.8, "wait": False},
    ]

    files = [tmp_path / "before.onnx", tmp_path / "after.onnx"]
    for file in files:
        file.write_bytes(b"x")
    shrunk = pruning_case.shrunk("decompose", "/p/<net>", "/p/base", tuple(map(str, files)))
    project.store.put(shrunk=as_stored(shrunk))
    session.poll()
    assert "decomposed project: &lt;net&gt;" in panel.result.value
    assert "<b>61.0 %</b>" in panel.result.value and "−37.0 %" in panel.result.value
    assert [Path(graph.url.split("&")[0].replace("%2F", "/")).name for graph in
            panel.graphs.children] == ["before.onnx", "after.onnx"]  # fmt: skip
    project.store.put(shrunk=as_stored(pruning_case.shrunk("prune", "/p/net", "/p/base")))
    session.poll()
    assert panel.result.value == "" and not panel.graphs.children
    panel.dispose()
    assert count_watchers(session) == before
    session.dispose()


def test_its_results_are_translated(project: Project) -> None:
    project.store.put(
        decomposition=as_stored(pruning_case.decomposition()),
        shrunk=as_stored(pruning_case.shrunk("decompose", "net", "base")),
    )
    session = Session(project)
    with speaking(Marked()):
        panel = DecompositionPanel(session)
        known = frozenset(
            [*pruning_case.NAMES, "stem", "body", "head", "net", "top-1", "MAC", "ms"]
        )
        found = [text for _where, text in widget_texts(panel) if unmarked(text, known)]
    assert not [text for text in found if "wb.open" not in text], found
    panel.dispose()
    session.dispose()
