"""The project folder: what is written, and what is refused when it is read."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
import warm
from hypothesis import given, settings

from workbench.engine.errors import MissingFile, WorkbenchError, WrongType, WrongValue
from workbench.studio import DataSpec, Project, ProjectSettings, Session, SourceSpec
from workbench.studio.errors import NotWritable
from workbench.studio.project import check_settings, read_settings, safe_name, to_toml

TEXT = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\x7f"), max_size=40
)


@settings(deadline=None, max_examples=60)
@given(
    name=TEXT,
    source=TEXT,
    arguments=st.dictionaries(
        TEXT,
        st.one_of(TEXT, st.booleans(), st.integers(-(2**60), 2**60), st.lists(st.integers(0, 9))),
        max_size=3,
    ),
    metric=TEXT,
    threads=st.integers(1, 64),
)
def test_settings_are_read_as_they_were_written(
    name: str, source: str, arguments: dict[str, object], metric: str, threads: int
) -> None:
    written = ProjectSettings(
        name, SourceSpec("python", source, arguments), DataSpec("npz", source), metric, threads
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "project.toml"
        path.write_text(to_toml(written), encoding="utf-8")
        assert read_settings(path) == written


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("version = 2", WrongValue, "version is 2"),
        ("name = 3", WrongType, "name is 3"),
        ("surprise = 1", WrongValue, "no field 'surprise'"),
        ("[run]\nthreads = 0", WrongValue, "run.threads is 0"),
        ("[run]\nthreads = true", WrongType, "run.threads"),
        ('[source]\nkind = "pickle"', WrongValue, "source.kind is 'pickle'"),
        ("[source]\nshell = 'rm'", WrongValue, "no field 'source.shell'"),
        ("source = 1", WrongType, "source must be a table"),
        ("[data]\nbatch_size = 1e3", WrongType, "data.batch_size"),
        ("not toml", WrongValue, "not valid TOML"),
    ],
)
def test_bad_settings_name_the_field(
    tmp_path: Path, text: str, error: type[Exception], words: str
) -> None:
    (tmp_path / "project.toml").write_text(text)
    with pytest.raises(error, match=words):
        Project.open(tmp_path)


def test_control_characters_are_refused() -> None:
    with pytest.raises(WrongValue, match="control characters"):
        check_settings(ProjectSettings("a\nb"), where="here")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("digits-resnet", "digits-resnet"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("...", "project"),
        ("a/b\\c:d", "a_b_c_d"),
        ("网络 1", "网络 1"),
        ("", "project"),
    ],
)
def test_safe_name(text: str, name: str) -> None:
    assert safe_name(text) == name


@given(st.text(max_size=400))
def test_a_safe_name_is_one_plain_file_name(text: str) -> None:
    name = safe_name(text)
    assert name
    assert Path(name).name == name
    assert not name.startswith(".")
    assert len(name.encode(errors="replace")) <= 200


def test_a_second_project_in_one_folder_is_refused(prepared: Callable[..., Project]) -> None:
    project = prepared()
    with pytest.raises(WrongValue, match="project in this folder already"):
        Project.create(project.folder)


def test_a_missing_project(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"project\.toml"):
        Project.open(tmp_path)


def _as_nobody(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Root may write anywhere, so that permissions are tested as another user."""
    prelude = "import os, sys\nimport workbench.studio\n"
    if os.getuid() == 0:
        prelude += "os.setgid(65534)\nos.setuid(65534)\n"
    return warm.run(["-c", prelude + program, *arguments], cwd="/")


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that every user may enter; another run of pytest shuts those of ``tmp_path``."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
        Path(folder).chmod(0o755)


def test_a_folder_without_write_permission_is_open_for_reading(
    prepared: Callable[..., Project], reachable: Path
) -> None:
    project = prepared()
    session = Session(project)
    session.toggle(session.layers["name"].iloc[0])
    session.dispose()
    folder = shutil.copytree(project.folder, reachable / "p")
    for file in folder.iterdir():
        file.chmod(0o444)
    folder.chmod(0o555)
    program = (
        "from workbench.studio import open_session\n"
        "session = open_session(sys.argv[1])\n"
        "assert session.read_only\n"
        "assert session.summary.quantized == 18, session.summary\n"
        "assert session.config_json()\n"
        "session.poll()\n"
        "try:\n"
        "    session.toggle(session.layers['name'].iloc[1])\n"
        "except PermissionError as error:\n"
        "    print(error)\n"
        "session.dispose()\n"
    )
    done = _as_nobody(program, str(folder))
    folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert "open for reading only" in done.stdout
    assert "Copy the folder" in done.stdout


@pytest.mark.parametrize("mode", [0o555, 0o444], ids=["may be read", "may not be entered"])
def test_creating_where_one_may_not_write(reachable: Path, mode: int) -> None:
    reachable.chmod(mode)
    program = (
        "from workbench.studio import Project\n"
        "try:\n"
        "    Project.create(sys.argv[1])\n"
        "except PermissionError as error:\n"
        "    print(error)\n"
    )
    done = _as_nobody(program, str(reachable / "p"))
    assert "cannot be written" in done.stdout, done.stderr


def test_a_disk_that_fills_up_changes_nothing(prepared: Callable[..., Project]) -> None:
    project = prepared(20)
    session = Session(project)
    connection = project.store.connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    texts = [session.config_json()]

    def fill() -> None:
        for _ in range(2000):
            session.set_flag(session.layers["name"], False)
            texts.append(session.config_json())
            session.undo()
            texts.append(session.config_json())

    with pytest.raises(NotWritable, match="nothing was changed"):
        fill()
    connection.execute("PRAGMA max_page_count = 1000000")
    assert Session(Project.open(project.folder)).config_json() == texts[-1]


def test_a_file_that_is_no_database(prepared: Callable[..., Project]) -> None:
    project = prepared()
    project.close()
    (project.folder / "project.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(WrongValue, match="not a readable project database"):
        Project.open(project.folder)


def test_hostile_databases_are_refused(prepared: Callable[..., Project]) -> None:
    project = prepared()
    project.close()
    path = project.folder / "project.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TRIGGER evil AFTER UPDATE ON head BEGIN DELETE FROM configuration; END"
        )
    with pytest.raises(WrongValue, match="triggers"):
        Project.open(project.folder)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER evil")
        connection.execute("UPDATE layers SET info = '{\"name\": 1}' WHERE idx = 0")
    with pytest.raises(WorkbenchError, match="cannot be read"):
        Session(Project.open(project.folder))


def test_a_newer_schema_is_refused(prepared: Callable[..., Project]) -> None:
    project = prepared()
    project.close()
    with sqlite3.connect(project.folder / "project.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(WrongValue, match="schema 99"):
        Project.open(project.folder)
