"""The offline report: nothing in it comes from elsewhere, no name in it is more than a text."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import history_case as case
import pytest

from workbench.studio import Project, Session
from workbench.studio.errors import NotWritable

EVIL = '</script><img src="http://evil.example/x" onerror="alert(1)">'


class Reader(HTMLParser):
    """Tags with their attributes, and the text a reader without JavaScript sees."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text.append(data)


def read(path: Path) -> tuple[Reader, str]:
    reader, html = Reader(), path.read_text("utf-8")
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader, html


@pytest.fixture
def session(prepared: Callable[..., Project]) -> Session:
    project = prepared(12)
    names = [layer.name for layer in project.store.layers()]
    search = case.add_job(project, "search")
    case.add_trial(project, search, (names[0],), 0.91)
    case.add_trial(project, search, (names[0], names[1]), 0.975)
    case.add_export(project, project.exports)
    return Session(project)


def test_the_report_says_what_the_project_is(session: Session) -> None:
    path = session.report()
    assert path == session.project.exports / "project_report.html"
    reader, html = read(path)
    text = " ".join(reader.text)
    for layer in session.layers["name"]:
        assert layer in text
    for said in ("98.0 %", "97.5 %", "net_deploy_model.onnx", "largest difference 0",
                 "create_quant_config", '"batch_num"'):  # fmt: skip
        assert said in text, said
    assert html.count("plotly.js v") == 1
    charts = [attrs for tag, attrs in reader.tags if "data-chart" in attrs]
    assert len(charts) == 3
    for attrs in charts:
        both = re.search(f'id="{attrs["data-chart"]}">(.*?)</script>', html, re.DOTALL)
        assert both and len(json.loads(both[1])) == 2


def test_nothing_is_fetched_and_only_its_own_scripts_run(session: Session) -> None:
    reader, _ = read(session.report())
    policy = next(a["content"] for tag, a in reader.tags if a.get("http-equiv"))
    assert policy and policy.startswith("default-src 'none'")
    assert not [tag for tag, _ in reader.tags if tag in ("link", "img", "iframe", "base", "form")]
    sources = [a[key] for _, a in reader.tags for key in ("src", "href") if a.get(key)]
    assert sources and all(str(source).startswith("data:text/csv") for source in sources)
    assert not [a for _, a in reader.tags if any(key.startswith("on") for key in a)]
    running = [a for tag, a in reader.tags if tag == "script" and a.get("type") is None]
    assert len(running) == 2 and all(a.get("nonce") for a in running)


def test_the_figures_of_a_chart_are_in_a_link_that_needs_no_script(session: Session) -> None:
    reader, _ = read(session.report())
    link = next(a for tag, a in reader.tags if tag == "a")
    csv = base64.b64decode(str(link["href"]).partition(",")[2]).decode("utf-8-sig")
    lines = csv.splitlines()
    assert len(lines) == 1 + len(session.layers)
    assert session.layers["name"].iloc[0] in lines[1]


def test_hostile_names_stay_text(prepared: Callable[..., Project]) -> None:
    project = prepared(4)
    with project.store.write() as connection:
        info = json.loads(connection.execute("SELECT info FROM layers").fetchone()[0])
        info["name"] = EVIL
        connection.execute(
            "UPDATE layers SET name = ?, info = ? WHERE idx = 0", (EVIL, json.dumps(info))
        )
        connection.execute("UPDATE measurements SET name = ? WHERE name LIKE '%block0%'", (EVIL,))
    case.add_trial(project, case.add_job(project, "search"), (EVIL,), 0.9)
    project.update_settings(name=EVIL)
    session = Session(project)
    path = session.report()
    assert path.parent == project.exports and "/script" not in path.name
    reader, html = read(path)
    assert not [tag for tag, _ in reader.tags if tag == "img"]
    assert EVIL in " ".join(reader.text), "and can be read as what it is"
    assert "<img" not in html


def test_a_project_without_results_has_a_report_too(prepared: Callable[..., Project]) -> None:
    project = Project.create(prepared(1).folder / "empty")
    reader, html = read(Session(project).report(project.folder / "deep" / "r.html"))
    assert "not known yet" in " ".join(reader.text)
    assert "plotly.js v" not in html, "without a chart there is no need for it"


def test_a_report_that_cannot_be_written_says_so(session: Session, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotWritable, match="cannot be written"):
        session.report(tmp_path / "file" / "r.html")
    (tmp_path / "kept.html").write_text("before")
    (tmp_path / "kept.html").chmod(0o400)
    assert session.report(tmp_path / "kept.html").stat().st_size > 1_000_000
