from __future__ import annotations

import logging
import stat
from pathlib import Path

import pytest

from workbench.engine.files.atomic import replace_on_success, write_bytes, write_text


def test_modes_folders_and_content(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "a.txt"
    write_text(path, "äb\r\n")
    assert path.read_bytes() == "äb\r\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE(path.parent.stat().st_mode) & ~0o750 == 0


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_bytes(path, b"old")

    def fail() -> None:
        with replace_on_success(path) as temporary:
            temporary.write_bytes(b"half")
            assert path.read_bytes() == b"old"
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_overwriting_warns_when_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / ("n" * 240 + ".txt")
    with caplog.at_level(logging.WARNING):
        write_text(path, "1", warn_if_exists=True)
        assert not caplog.records
        write_text(path, "2", warn_if_exists=True)
    assert "overwritten" in caplog.text


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "t.txt", tmp_path / "l.txt"
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
