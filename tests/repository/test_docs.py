"""What the documentation shows runs, what it refers to exists, and the references are complete."""

from __future__ import annotations

import html.parser
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import doc_blocks
import pytest
import warm
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))
PAGES = sorted([*ROOT.glob("*.md"), *(p for p in DOCS.rglob("*.md") if "build" not in p.parts)])
TRANSLATED = [ROOT / "README.zh-CN.md"]
"""Held to the English page's code by a test of their own: it need not run twice."""
WITH_CODE = [page for page in PAGES if page not in TRANSLATED and doc_blocks.blocks(page)]


def title(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# -- code blocks ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[[Path, Path], str]]:
    """Runs a page in a folder and returns 'ok' or what is wrong."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", WORKBENCH_LANGUAGE="en")
    with subprocess.Popen(
        [sys.executable, doc_blocks.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        asking, answers = server.stdin, server.stdout

        def ask(page: Path, folder: Path, name: str = "") -> str:
            asking.write(json.dumps([str(page), name or title(page), str(folder)]) + "\n")
            asking.flush()
            said = answers.readline()
            assert said, "the process that runs the pages has died"
            return str(json.loads(said))

        yield ask
        asking.close()


@pytest.mark.parametrize("page", WITH_CODE, ids=title)
def test_code_runs(page, run, tmp_path):
    said = run(page, tmp_path)
    assert said == "ok", said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Words.\n\n```python\nx = 1\n\n1 / 0\n```\n", "page.md:6: ZeroDivisionError"),
        ("```console\n$ workbench analyse nowhere\n```\n", "page.md:2: DocError: page.md:2: exit"),
        ("```console\n$ false\n```\n", "page.md:2: CalledProcessError"),
        ("```python\nprint('a 12.5 b')\n```\n\n```text\na 3 c\n```\n", "page.md:2: the page shows"),
        ("```python\nprint('a 12.5 b')\n```\n\n```text\na 3 b\n```\n", "ok"),
        ("```console\n$ echo one 2 three\none ...\n```\n", "ok"),
        ("```python\n# mine.py\n1 / 0\n```\n", "ok"),
    ],
)
def test_a_broken_block_names_page_and_line(text, said, run, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    assert run(page, tmp_path, "page.md").startswith(said)


def commands() -> list[tuple[str, str]]:
    return [
        (f"{title(page)}:{line}", command)
        for page in WITH_CODE
        for block in doc_blocks.blocks(page)
        if block.language == "console"
        for line, command, _ in doc_blocks.commands(block)
    ]


def test_what_is_not_run_has_a_reason_and_right_arguments():
    from workbench.cli.main import parser

    begun = set()
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for where, command in commands():
        if doc_blocks.why_not_run(command) is None:
            continue
        command = doc_blocks.ASSIGNMENT.sub("", command)
        begun |= {begin for begin in doc_blocks.NOT_RUN if command.startswith(begin)}
        words = command.split()
        if words[0] == "workbench":
            parser().parse_args(words[1:])
        elif words[0] == "make":
            assert words[1] in targets, where
    assert begun == set(doc_blocks.NOT_RUN), "an entry of NOT_RUN that no page needs"


def test_what_is_shortened_is_shown_somewhere():
    text = "".join(block.text for page in WITH_CODE for block in doc_blocks.blocks(page))
    assert [shown for shown in doc_blocks.QUICK if shown not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_fence_says_what_it_is(page):
    """A block without a language would be passed over in silence."""
    known = re.compile(r"python|console|text|json|\{[\w-]+\}.*")
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type == "fence":
            where = f"{title(page)}:{(token.map or [0])[0] + 1}"
            assert known.fullmatch(token.info.strip()), f"{where}: {token.info!r}"


# -- references -----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_links_and_pictures_exist(page):
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
        for child in token.children or ():
            target = str(child.attrGet("href") or child.attrGet("src") or "")
            path = target.partition("#")[0]
            if path and "://" not in path:
                where = f"{title(page)}:{(token.map or [0])[0] + 1}"
                assert (page.parent / path).exists(), f"{where}: {target}"


def test_diagrams_are_what_the_script_draws(tmp_path):
    import diagrams

    diagrams.main(tmp_path)
    for drawn in tmp_path.glob("*.svg"):
        assert (DOCS / "images" / drawn.name).read_bytes() == drawn.read_bytes(), drawn.name


def test_every_public_name_of_the_engine_is_described_once():
    import workbench.engine

    text = (DOCS / "reference" / "engine.md").read_text(encoding="utf-8")
    described = re.findall(r"\.\. auto\w+:: (\w+)", text)
    presets = [name for name in workbench.engine.__all__ if name.endswith("_CFG")]
    assert "<!-- generated: presets -->" in text
    assert sorted(described + presets) == sorted(workbench.engine.__all__)


def test_messages_in_troubleshooting_are_ours():
    source = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "workbench").rglob("*.py"))
    source = re.sub(r"""["']\s*\n\s*[fr]?["']""", "", source)
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^### `(.*)`$", text, re.MULTILINE)
    assert len(messages) > 15
    for message in messages:
        parts = [part.strip(" ,:;") for part in message.split("…")]
        assert any(len(part) >= 5 for part in parts), message
        for part in parts:
            assert part in source, message


# -- the site -------------------------------------------------------------------------------------


class Requests(html.parser.HTMLParser):
    """What a browser would fetch for a page: everything but links to follow."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "srcset", "data") or (name == "href" and tag == "link"):
                self.found.append(value or "")


def test_the_site_is_built_without_warnings_and_asks_nothing_of_the_net(tmp_path):
    done = warm.run(
        [
            *("-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"),
            *("-d", str(tmp_path / "trees"), str(DOCS), str(tmp_path / "site")),
        ]
    )
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        asked = Requests()
        asked.feed(page.read_text(encoding="utf-8"))
        assert asked.found
        assert [url for url in asked.found if re.match(r"(https?:)?//", url)] == []
    for style in (tmp_path / "site").rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)'\"]*", text) == []
    reference = (tmp_path / "site" / "reference" / "command-line.html").read_text(encoding="utf-8")
    assert "auto-calibrate" in reference
    assert "generated:" not in reference
