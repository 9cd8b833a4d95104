from __future__ import annotations

import csv
from typing import Any

from workbench.studio.session import Session
from workbench.widgets import SensitivityChart
from workbench.widgets.chart import Chart


def test_the_figures_of_a_chart_are_sent_when_they_are_asked_for(session: Session) -> None:
    view = SensitivityChart(session, dark=True)
    (chart,) = [child for child in view.children if isinstance(child, Chart)]
    sent: list[dict[str, Any]] = []
    chart.downloads.send = lambda content, *_more: sent.append(content)
    session.config[session.layers["name"][0]].quant_enable = False
    chart.downloads._handle_custom_msg({"type": "csv"}, [])
    table = list(csv.DictReader(sent[0]["csv"].splitlines()))
    assert [row["name"] for row in table[:3]] == list(session.layers["name"][:3])
    third = session.layers["name"][2]
    errors = [float(row["error 1 − cos"]) for row in table if row["name"] == third]
    assert errors[0] == 1 - session.layers["cosine"][2]
    chart.downloads._handle_custom_msg("csv", [])
    chart.downloads._handle_custom_msg({"type": "rm"}, [])
    assert len(sent) == 1

    assert chart.downloads.file.endswith("-Chart-of-the-layers")
    assert chart.figure._config["toImageButtonOptions"]["filename"] == chart.downloads.file
    assert chart.figure._config["displaylogo"] is False
    # A picture taken along is readable on any ground, the one of dark text as well.
    assert view.figure.layout.paper_bgcolor == "#14191f"
    view.dispose()
