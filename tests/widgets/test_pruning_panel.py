from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pruning_case

from workbench.studio.project import Project
from workbench.studio.pruning_state import as_stored, store_pruning
from workbench.studio.session import Session
from workbench.widgets import PruningPanel


def kept(panel: PruningPanel) -> dict[str, int]:
    stay = panel.channels.data[0]
    return dict(zip(stay.x, map(int, stay.y), strict=True))


def test_plans_are_looked_up_and_taken_over(
    folder: Path, count_watchers: Callable[[Session], int]
) -> None:
    project = Project.create(folder, layers=pruning_case.layers())
    session = Session(project)
    before = count_watchers(session)
    panel = PruningPanel(session)
    assert "has to be trained again" in panel.note.value
    assert panel.use.disabled and panel.prune.disabled and not panel.measure.disabled
    store_pruning(project.store, pruning_case.pruning())
    session.poll()
    assert [label for label, _ in panel.plan.options] == ["1.00×", "1.20×", "2.00×", "4.00×"]
    assert panel.plan.value == 2
    assert kept(panel) == {"stem": 4, "body.a": 6, "body.b": 6}
    assert "216 →" in panel.numbers.value and "<b>112</b>" in panel.numbers.value
    crosses = panel.heat.data[1]
    assert list(crosses.x).count(7) == 3 and len(crosses.x) == 4 + 2 + 2
    assert "64 samples and cross-entropy" in panel.note.value
    panel.plan.value = 3
    assert kept(panel)["stem"] == 2
    assert "as measured at 1.93×" in panel.numbers.value
    panel.by.value = "uniform"
    assert [label for label, _ in panel.plan.options] == ["0 %", "25 %", "50 %"]
    assert panel.plan.value == 1, "25 % is nearest to the recommended 20 %"
    panel.use.click()
    assert session.prune_ratios() == dict.fromkeys(("stem", "body.a", "body.b"), 0.25)
    panel.by.value = "columns"
    assert panel.plan.layout.display == "none" and panel.use.disabled
    session.config["stem"].prune_ratio = 0.5
    assert kept(panel)["stem"] == 4
    panel.prune.click()
    assert "cannot start jobs" in panel.trouble.value

    shrunk = pruning_case.shrunk("prune", "/p/<net>", "/p/base")
    project.store.put(shrunk=as_stored(shrunk))
    session.poll()
    assert "98.0 % →" in panel.result.value and "<b>61.0 %</b>" in panel.result.value
    assert "/p/&lt;net&gt;" in panel.result.value
    assert "fine-tune it" in panel.result.value
    panel.dispose()
    assert count_watchers(session) == before
    session.dispose()
