"""Texts of the code into the catalogues: ``make translations`` extracts, updates and compiles.

Two kinds of text are found. *Shown*: the arguments of ``_``, ``N_`` and ``ngettext``. *Said*: what
jobs, errors and layers say in English from another process (``SAID``); an f-string becomes a
template with named fields, which ``workbench.charts.spoken`` matches again when it is shown.
"""

from __future__ import annotations

import ast
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from babel.messages import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).resolve().parents[1]
LOCALES = ROOT / "workbench" / "locale"
PACKAGE = ROOT / "workbench"
SHOWN = tuple(PACKAGE / name for name in ("app", "charts", "widgets", "studio", "netron_server"))
STUDIO = PACKAGE / "studio"
NO_WORDS = ("*script*.py", "store.py", "project.py", "format_choices.py", "worker.py",
            "config_view.py", "history_store.py")  # fmt: skip
"""Files of the studio whose functions return code or queries."""

REASONS = (  # files of the engine whose functions return why a layer stays as it is
    "graph/eligibility.py", "graph/rnn_rules.py", "graph/channel_layers.py",
    "graph/channel_groups.py", "graph/channel_map.py", "files/layer_rules.py",
    "flows/prune_layers.py",
)  # fmt: skip
ERRORS = frozenset(
    (
        "WorkbenchError", "WrongType", "WrongValue", "WrongState", "MissingFile", "NotWritable",
        "CaptureError", "CodeNotAllowed", "JobActive", "JobFailed", "ErrorText",
    )
)  # fmt: skip
SAYING = frozenset(("stage", "Notice", "Progress", "freeze", "TrainingData", "_counted"))
"""Calls, beside errors, whose arguments a person reads."""

NAMED = frozenset(
    (
        "words", "largest", "share", "notice", "_message", "stage", "refused", "reason", "hint",
        "message", "what", "name", "NARROW", "OFF",
    )
)  # fmt: skip
"""Variables that hold what a person reads."""

HEADER = (
    "# Texts of Compression Workbench. Written by `make translations`; translate the msgstr.\n#"
)
DATE = datetime(2026, 1, 1, tzinfo=UTC)
NOISE = re.compile(
    r'^"(Report-Msgid-Bugs-To|POT-Creation-Date|PO-Revision-Date|Last-Translator|Generated-By).*\n',
    re.MULTILINE,
)


@dataclass(frozen=True)
class Text:
    """One text of the code; ``many`` is its plural form, if it has one."""

    one: str
    many: str
    place: str


def constant(node: ast.expr | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def template(node: ast.expr | None) -> str | None:
    """A constant as it is; an f-string with its values as named fields."""
    if not isinstance(node, ast.JoinedStr):
        return constant(node)
    text, names = "", set[str]()
    for part in node.values:
        if isinstance(part, ast.Constant):
            text += str(part.value)
            continue
        assert isinstance(part, ast.FormattedValue)
        name = part.value.id if isinstance(part.value, ast.Name) else "value"
        if name in names and not isinstance(part.value, ast.Name):
            name = f"value{len(names)}"
        names.add(name)
        text += "{" + name + "}"
    return text


def called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def shown_texts(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            name = called(node)
            first = constant(node.args[0])
            if name in ("_", "N_") and first:
                yield first, "", node.lineno
            elif name == "ngettext" and first and len(node.args) > 1:
                yield first, constant(node.args[1]) or "", node.lineno


def said_texts(tree: ast.AST, *, returned: bool) -> Iterator[tuple[str, str, int]]:
    """Stages, notices, errors and reasons: written down in English, shown elsewhere.

    ``returned``: what functions return, too.
    """
    for node in ast.walk(tree):
        found: list[ast.expr] = []
        name = ""
        if isinstance(node, ast.Call):
            name = called(node)
            if name in SAYING:
                found += node.args
            elif name in ERRORS:
                found += node.args[: 1 if name != "ErrorText" else 2]
                found += [k.value for k in node.keywords if k.arg in ("hint", "summary")]
            elif name == "append" and ast.unparse(node.func).endswith("notices.append"):
                found += node.args
        elif isinstance(node, ast.Assign):
            found += [node.value] if any(target(t) in NAMED for t in node.targets) else []
        elif returned and isinstance(node, ast.Return) and node.value is not None:
            found.append(node.value)
        for value in found:
            for branch in branches(value):
                text = template(branch)
                if text and "<" not in text and (" " in text.strip() or name == "stage"):
                    yield text, "", branch.lineno


def target(node: ast.expr) -> str:
    """The name that is assigned to; entries of a table count as ``reason``."""
    if isinstance(node, ast.Subscript):
        return "reason"
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


def branches(node: ast.expr) -> Iterator[ast.expr]:
    """The texts that ``a if condition else b``, ``a or b``, ``a, b`` and ``[a, b]`` may give."""
    if isinstance(node, ast.IfExp):
        parts = [node.body, node.orelse]
    elif isinstance(node, ast.BoolOp):
        parts = node.values
    elif isinstance(node, ast.Tuple | ast.List):
        parts = node.elts
    else:
        yield node
        return
    for part in parts:
        yield from branches(part)


def texts() -> list[Text]:
    """Every text of the code, in the order of the files."""
    found: list[Text] = []

    def add(path: Path, texts_: Iterator[tuple[str, str, int]]) -> None:
        place = path.relative_to(ROOT).as_posix()
        found.extend(Text(one, many, place) for one, many, _line in texts_ if letters(one))

    for folder in SHOWN:
        for path in sorted(folder.rglob("*.py")):
            tree = ast.parse(path.read_text("utf-8"))
            add(path, shown_texts(tree))
            if folder == STUDIO:
                code = any(path.match(pattern) for pattern in NO_WORDS)
                add(path, said_texts(tree, returned=not code))
    for name in REASONS:
        path = PACKAGE / "engine" / name
        if path.is_file():
            add(path, said_texts(ast.parse(path.read_text("utf-8")), returned=True))
    return found


def letters(text: str) -> bool:
    return any(letter.isalpha() for letter in text)


def wanted() -> Catalog:
    """A catalogue of the code's texts without translations."""
    catalogue = Catalog(header_comment=HEADER, project="Compression Workbench", fuzzy=False)
    for text in texts():
        key = (text.one, text.many) if text.many else text.one
        catalogue.add(key, locations=[(text.place, 0)])
    return catalogue


def read(path: Path) -> Catalog:
    with path.open("rb") as file:
        catalogue = read_po(file, locale=path.parts[-3])
    # Fixed, or the compiled file would be another one every day.
    catalogue.creation_date = catalogue.revision_date = DATE
    return catalogue


def compiled(path: Path) -> bytes:
    """The bytes of the ``.mo`` that belongs to a ``.po``."""
    file = io.BytesIO()
    write_mo(file, read(path))
    return file.getvalue()


def update(path: Path) -> list[str]:
    """Bring one ``.po`` and its ``.mo`` up to date; the texts that wait for a translation."""
    catalogue = read(path)
    catalogue.update(wanted(), no_fuzzy_matching=True, update_creation_date=False)
    catalogue.obsolete.clear()
    for message in catalogue:
        if message.id and message.fuzzy:  # its plural came or went: to be translated anew
            message.flags.discard("fuzzy")
            message.string = ""
    catalogue.header_comment = HEADER
    file = io.BytesIO()
    write_po(file, catalogue, width=100, include_lineno=False)
    path.write_text(NOISE.sub("", file.getvalue().decode("utf-8")), "utf-8")
    path.with_suffix(".mo").write_bytes(compiled(path))
    return [str(m.id) for m in catalogue if m.id and not is_translated(m.string)]


def is_translated(string: object) -> bool:
    return all(string) if isinstance(string, tuple | list) else bool(string)


def main() -> int:
    missing = 0
    for path in sorted(LOCALES.glob("*/LC_MESSAGES/workbench.po")):
        left = update(path)
        missing += len(left)
        print(f"{path.relative_to(ROOT)}: {len(left)} to translate")
        for text in left:
            print(f"  {text!r}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
