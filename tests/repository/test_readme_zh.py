"""README.zh-CN.md says what README.md says: same parts, same code, same pictures and links."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENGLISH = (ROOT / "README.md").read_text("utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text("utf-8")
HOW = "README.md was changed: change README.zh-CN.md alike"


def code(text: str) -> list[str]:
    """The blocks of code without their comments, which are translated."""
    return [
        re.sub(r"\s*#.*", "", block) for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    ]


def prose(text: str) -> list[str]:
    """What lies between the blocks of code, by paragraph."""
    parts = re.sub(r"```.*?```", "", text, flags=re.DOTALL).split("\n\n")
    return [part.strip() for part in parts if part.strip() and "README" not in part]


def names(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))


def targets(text: str) -> list[str]:
    return [link for link in re.findall(r"\]\((.*?)\)", text) if "README" not in link]


def test_the_same_code() -> None:
    assert code(CHINESE) == code(ENGLISH), HOW


def test_the_same_pictures_and_links() -> None:
    assert targets(CHINESE) == targets(ENGLISH), HOW


def test_the_same_parts() -> None:
    kinds = [
        [part[:2] if part[0] in "#|!" else "" for part in prose(x)] for x in (ENGLISH, CHINESE)
    ]
    assert kinds[0] == kinds[1], HOW
    rows = [
        [line.count("|") for line in x.splitlines() if line[:1] == "|"] for x in (ENGLISH, CHINESE)
    ]
    assert rows[0] == rows[1], HOW


def test_nothing_that_has_a_name_is_left_out() -> None:
    assert names(ENGLISH) <= names(CHINESE), HOW


def test_each_leads_to_the_other() -> None:
    assert "[English](README.md)" in CHINESE
    assert "[中文](README.zh-CN.md)" in ENGLISH
