"""Finds text for people in code that does not go through the catalogue."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

MARKS = frozenset(("_", "N_", "ngettext", "said"))
SHOWN = frozenset(
    (
        "label", "title", "placeholder", "description", "tooltip", "tip", "text", "name", "titles",
        "title_text", "xaxis_title_text", "yaxis_title_text", "hovertemplate", "hint", "message",
        "aria_label", "caption", "empty", "words",
    )
)  # fmt: skip
"""Keyword arguments that a person reads."""

CALLS = frozenset(("notice", "note", "button", "_button", "say", "fill", "ThemedHTML", "HTML"))
"""Functions whose first argument a person reads."""

ERRORS = re.compile(r"(Error|Wrong\w+|Missing\w+|NotWritable)$")
QUIET = frozenset(("debug", "info", "warning", "error", "exception", "getLogger", "watch"))
_CODE = re.compile(r"[{}<>=_/\\#;%]|\.\w|\dpx|^[a-z-]+$|^[a-z]+([A-Z]\w*)+$")
_CODE_TAGS = re.compile(r"<(code|pre)\b.*?</\1>", re.DOTALL)
_WORD = re.compile(r"[A-Za-z]{2,}")
_TEXT_OF_TAG = re.compile(r">([^<>]*[A-Za-z]{2,}[^<>]*)<")
_FIELDS = re.compile(r"&#?\w+;|%\{[^}]*\}|\{%[^%]*%\}|\{\{[^}]*\}\}|#[0-9a-f]{6}")


def plain_texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every literal of a file that a person would read in English only."""
    tree = ast.parse(path.read_text("utf-8"))
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        text = _literal(node)
        if text is None or isinstance(parents.get(node), ast.JoinedStr):
            continue
        if _marked(node, parents) or _quiet(node, parents):
            continue
        text = _CODE_TAGS.sub("", text)
        found = [part.strip() for part in _TEXT_OF_TAG.findall(text)]
        if not found and "<" not in text and (_shown(node, parents) or _sentence(text)):
            found = [text.strip()]
        for part in found:
            bare = _FIELDS.sub("", part.replace("\0", ""))
            if _WORD.search(bare):
                yield node.lineno, bare.strip()


def _literal(node: ast.AST) -> str | None:
    """A string; of an f-string what stands between the values."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values
        )
    return None


def _sentence(text: str) -> bool:
    """At least three words and nothing that looks like code."""
    bare = text.replace("\0", "x")
    return len(_WORD.findall(bare)) > 2 and " " in bare.strip() and not _CODE.search(bare)


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def _marked(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    while node in parents:
        node = parents[node]
        if isinstance(node, ast.Call) and _called(node) in MARKS:
            return True
        if isinstance(node, ast.stmt | ast.FormattedValue):
            return False
    return False


def _quiet(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Docstrings, logs, style sheets, addresses of parameters, exceptions of the language."""
    child = node
    while child in parents:
        parent = parents[child]
        if isinstance(parent, ast.Expr):
            return True
        if isinstance(parent, ast.keyword) and parent.arg in (
            "doc", "styles", "stylesheets", "css_classes", "layout", "sx", "icon", "configuration",
        ):  # fmt: skip
            return True
        if isinstance(parent, ast.Call):
            name = _called(parent)
            if name in QUIET or ERRORS.search(name):
                return True
        if isinstance(parent, ast.Assign) and any(
            isinstance(t, ast.Name) and re.search("CSS|STYLE|FONT|VARIABLES", t.id)
            for t in parent.targets
        ):
            return True
        if isinstance(parent, ast.stmt):
            return False
        child = parent
    return False


def _shown(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether a literal stands where a person reads it."""
    parent = parents.get(node)
    while isinstance(parent, ast.IfExp | ast.BoolOp | ast.BinOp):
        node, parent = parent, parents.get(parent)
    if isinstance(parent, ast.keyword):
        return parent.arg in SHOWN
    return isinstance(parent, ast.Call) and node in parent.args[:1] and _called(parent) in CALLS
