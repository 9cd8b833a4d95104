"""Widgets in a language that marks every text, and how a notebook chooses its language."""

from __future__ import annotations

from pathlib import Path

import pytest
from marked import OPEN, Marked, unmarked, widget_texts
from sample_layers import layer

import workbench as wb
from workbench.charts import text
from workbench.charts.text import speaking
from workbench.studio.project import Project
from workbench.studio.session import Session
from workbench.widgets import (
    DecompositionPanel,
    ExportPanel,
    FormatsPanel,
    JobBar,
    LayerInspector,
    LayerTable,
    PruningPanel,
    SearchMonitor,
    SensitivityChart,
    TrainMonitor,
    Workbench,
)

KINDS = (
    DecompositionPanel, ExportPanel, FormatsPanel, JobBar, LayerInspector, LayerTable, PruningPanel,
    SearchMonitor, SensitivityChart, TrainMonitor, Workbench,
)  # fmt: skip
NAMES = """
    cos SQNR MAC DMQ IFMR HFMG ARQ ADA GBOP MBOP kB MB dB min Conv2d Linear conv stage block QAT
    Recover BinarySearch BinarySearchVerified Greedy Pareto top-1 PSNR act wts bits net
    int8 int4 float8 mxfp4 float int16 minmax smoothquant awq gptq float4 hifloat8 mxfp8
"""
"""Names, units and formats: the same in every language."""


@pytest.fixture
def session(tmp_path: Path) -> Session:
    layers = [layer(i, eligible=i != 5) for i in range(6)]
    return Session(Project.create(tmp_path / "net", layers=layers))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_text_of_a_widget_goes_through_the_catalogue(session: Session, kind: type) -> None:
    layers = session.layers
    known = {str(name) for name in layers["name"]} | set(NAMES.split())
    known |= {part for name in layers["name"] for part in str(name).split(".")}
    with speaking(Marked()):
        view = kind(session)
        shown = list(widget_texts(view))
        view.dispose()
    assert any(OPEN in text_ for _where, text_ in shown)
    found = [
        f"{where}: {words} in {text_[:300]!r}"
        for where, text_ in shown
        if (words := unmarked(text_, frozenset(known)))
    ]
    assert not found, "these texts bypass _(…) of workbench.charts.text:\n  " + "\n  ".join(found)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"WORKBENCH_LANGUAGE": "zh"}, "导出"),
        ({"LANG": "zh_CN.UTF-8"}, "导出"),
        ({"LC_ALL": "C", "LANG": "zh_CN.UTF-8"}, "Export"),
        ({"WORKBENCH_LANGUAGE": "en", "LANG": "zh_CN.UTF-8"}, "Export"),
        ({"LANG": "de_DE.UTF-8"}, "Export"),
        ({}, "Export"),
    ],
)
def test_a_notebook_speaks_the_language_of_its_environment(
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    expected: str,
) -> None:
    for name in ("WORKBENCH_LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    text._of_environment.cache_clear()
    view = ExportPanel(session)
    text._of_environment.cache_clear()
    assert view.export.description == expected
    view.dispose()


def test_or_the_one_that_was_asked_for(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_chosen", [])
    wb.use_language("zh")
    view = ExportPanel(session)
    assert view.export.description == "导出"
    view.dispose()
