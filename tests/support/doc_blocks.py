"""The code blocks of a page of documentation, and running them: ``python doc_blocks.py``.

Run as a program it is a server for one test module. It imports the engine once, reads a page and an
empty folder a line, and runs the page's blocks in order in a fork of its own, as a reader would who
types them into one interpreter.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

PROMPT = "$ "
PICTURES = 128
"""So many are the examples judged with here, instead of 4,200."""

SCRIPT = re.compile(r"# (\w+\.py)\n")
ASSIGNMENT = re.compile(r"^(\w+=\S+ )+")

QUICK = {
    "epochs=2": "epochs=1, samples=128",
    'train("distill")': 'train("distill", epochs=1, samples=32)',
    "ada_iterations=1000": "ada_iterations=20",
    "pareto_trials=40": "pareto_trials=4",
}
"""What takes minutes as it is shown: the test shows that it runs, not what it reaches."""

NOT_RUN = {
    "git clone": "the repository is here already",
    "make": "sets the environment up, or serves; the targets are checked against the Makefile",
    "workbench serve": "serves until it is stopped; the options are checked against the parser",
    "panel serve": "serves until it is stopped",
    "torchrun --nnodes": "needs two machines",
}
"""Commands that are shown and not run, by how they begin, and why."""


class DocError(AssertionError):
    """A block that does not do what the page says; the text names page and line."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, first line in the page (from 1), and what it prints.

    ``output`` is the text block right behind a python block, None without one.
    """

    language: str
    text: str
    line: int
    output: str | None = None


def blocks(page: Path) -> list[Block]:
    """The python and console blocks of a Markdown page, in order."""
    tokens = MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8"))
    found: list[Block] = []
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type != "fence":
            continue
        language = token.info.strip()
        line = (token.map or [0])[0] + 2
        if language == "text" and before is not None and before.type == "fence":
            if found and found[-1].language == "python":
                last = found.pop()
                found.append(Block(last.language, last.text, last.line, token.content))
        elif language in ("python", "console"):
            found.append(Block(language, token.content, line))
    return found


def commands(block: Block) -> Iterator[tuple[int, str, str]]:
    """Line, command and shown output of each command of a console block."""
    lines = block.text.splitlines()
    starts = [i for i, text in enumerate(lines) if text.startswith(PROMPT)]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        last = start
        while lines[last].endswith("\\"):
            last += 1
        command = " ".join(text.rstrip("\\").strip() for text in lines[start : last + 1])
        command = re.sub(r"\s+#.*$", "", command.removeprefix(PROMPT))
        yield block.line + start, command, "\n".join(lines[last + 1 : end])


def why_not_run(command: str) -> str | None:
    """The reason for which a command is shown and not run."""
    command = ASSIGNMENT.sub("", command)
    return next((why for begin, why in NOT_RUN.items() if command.startswith(begin)), None)


def quick(text: str) -> str:
    for shown, small in QUICK.items():
        text = text.replace(shown, small)
    return text


def run_page(page: Path, title: str, folder: Path) -> None:
    """Run all blocks of a page in ``folder``. Raises `DocError` at the first that is wrong."""
    os.chdir(folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "python":
            _run_python(block, title, names)
        else:
            for line, command, shown in commands(block):
                if why_not_run(command) is None:
                    _run_command(command, shown, f"{title}:{line}")


def _run_python(block: Block, title: str, names: dict[str, Any]) -> None:
    script = SCRIPT.match(block.text)
    if script:  # a file to be saved under the name in its first line
        Path(script[1]).write_text(block.text)
        return
    # Empty lines in front: a traceback then has the page's own line numbers.
    source = "\n" * (block.line - 1) + quick(block.text)
    where = f"{title}:{block.line}"
    printed = _captured(lambda: exec(compile(source, title, "exec"), names), where)
    _compare(printed, block.output or "", where)


def _run_command(command: str, shown: str, where: str) -> None:
    given = ASSIGNMENT.match(command)
    for setting in given[0].split() if given else ():
        name, _, value = setting.partition("=")
        os.environ[name] = value
        if name == "PYTHONPATH":
            sys.path.insert(0, os.path.abspath(value))
    program, *arguments = shlex.split(quick(ASSIGNMENT.sub("", command)))
    if program == "workbench":
        from workbench.cli import main

        def call() -> None:
            code = main(arguments)
            if code not in (0, 3):  # a target that is missed with less data is no broken page
                raise DocError(f"{where}: exit code {code}")
    elif program == "python":

        def call() -> None:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    elif program == "torchrun":

        def call() -> None:
            _two_ranks(arguments[-1])
    else:

        def call() -> None:
            print(subprocess.run(command, shell=True, check=True, stdout=-1, text=True).stdout)

    _compare(_captured(call, where), shown, where)


def _captured(call: Callable[[], object], where: str) -> str:
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            call()
    except BaseException as error:
        page = where.rpartition(":")[0]
        inside = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == page]
        at = f"{page}:{inside[-1]}" if inside else where
        lines = traceback.format_exc() + out.getvalue()[-2000:]
        raise DocError(f"{at}: {type(error).__name__}: {error}\n\n{lines}") from None
    return out.getvalue()


def _two_ranks(script: str) -> None:
    """What ``torchrun --nproc-per-node 2`` does, in forks of this process."""
    ranks = []
    for rank in range(2):
        child = os.fork()
        if not child:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
            os.environ["MASTER_PORT"] = str(20000 + os.getppid() % 20000)
            try:
                runpy.run_path(script, run_name="__main__")
                os._exit(0)
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
                os._exit(1)
        ranks.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in ranks]
    if any(codes):
        raise DocError(f"{script}: the ranks ended with {codes}")


NUMBER = re.compile(r"[-+−]?\d[\d,.]*(e[-+]?\d+)?")


def _compare(printed: str, shown: str, where: str) -> None:
    """Whether what is shown is printed: numbers may differ, and ``...`` stands for anything."""
    if not shown.strip():
        return
    loose = [re.escape(" ".join(NUMBER.sub("#", part).split())) for part in shown.split("...")]
    text = " ".join(NUMBER.sub("#", printed).split())
    if not re.fullmatch(r"\s*" + r".*".join(loose) + r"\s*", text, re.DOTALL):
        raise DocError(f"{where}: the page shows\n{shown}\nbut what is printed is\n{printed}")


def _prepare() -> None:
    """Import and warm up what every page needs, and make the examples' data small."""
    import warm

    import workbench.studio.pruning
    import workbench.zoo.data
    from workbench.zoo import TrainingDigits

    train, test = workbench.zoo.data.split()
    few = workbench.zoo.data.Digits(test.images[:PICTURES], test.labels[:PICTURES])
    workbench.zoo.data.split = lambda: (train, few)  # type: ignore[assignment]
    workbench.zoo.data.EVALUATION_COPIES = 1
    assert TrainingDigits.__init__.__kwdefaults__ is not None
    TrainingDigits.__init__.__kwdefaults__["copies"] = 1
    # Not how fast something is, but that it runs.
    workbench.studio.pruning.MEASURED = ()
    warm.warm_up()


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a page's child processes print is not an answer
    _prepare()
    for line in sys.stdin:
        page, title, folder = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            with os.fdopen(writing, "w") as pipe:
                try:
                    run_page(Path(page), title, Path(folder))
                    pipe.write("ok")
                except DocError as error:
                    pipe.write(str(error))
            os._exit(0)  # not the interpreter's end: the server's own clean-up is not the page's
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        answers.write(json.dumps(said or f"{title}: the process died") + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
