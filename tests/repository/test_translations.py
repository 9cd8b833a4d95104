"""Every text for people is in the catalogue, translated, compiled, and nothing goes past it."""

from __future__ import annotations

import ast
import gettext
import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from plain_text import plain_texts

ROOT = Path(__file__).resolve().parents[2]
LOCALES = ROOT / "workbench" / "locale"
CATALOGUES = sorted(LOCALES.glob("*/LC_MESSAGES/workbench.po"))
WINDOWS = [
    path
    for folder in ("app", "charts", "widgets")
    for path in sorted((ROOT / "workbench" / folder).rglob("*.py"))
]
FIELD = re.compile(r"\{\w*\}")
HOW = """
Run `make translations` (python tools/translations.py): it writes new texts into
workbench/locale/zh/LC_MESSAGES/workbench.po. Fill in each empty msgstr there, keep its {fields},
and run `make translations` again: it compiles the .mo. Commit both files."""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = ROOT / "tools" / "translations.py"
    spec = importlib.util.spec_from_file_location("translations", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["translations"] = module
    spec.loader.exec_module(module)
    return module


def singular(identifier: object) -> str:
    return identifier[0] if isinstance(identifier, tuple | list) else str(identifier)


def test_there_is_a_chinese_catalogue() -> None:
    assert [path.parts[-3] for path in CATALOGUES] == ["zh"]


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parts[-3])
def test_the_catalogue_has_the_texts_of_the_code(tool: ModuleType, path: Path) -> None:
    known = {str(m.id) for m in tool.read(path) if m.id}
    wanted = {str(m.id): m.locations for m in tool.wanted() if m.id}
    new = [f"{text!r} ({wanted[text][0][0]})" for text in wanted if text not in known]
    assert not new, f"not in {path.relative_to(ROOT)}:\n  " + "\n  ".join(new) + HOW
    old = sorted(known - set(wanted))
    assert not old, f"in {path.relative_to(ROOT)}, but no longer in the code: {old}" + HOW


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parts[-3])
def test_every_text_is_translated_with_its_fields(tool: ModuleType, path: Path) -> None:
    missing, broken, doubtful = [], [], []
    for message in tool.read(path):
        if not message.id:
            continue
        strings = message.string if isinstance(message.string, tuple) else (message.string,)
        one = singular(message.id)
        if not all(strings):
            missing.append(one)
        allowed = set(FIELD.findall("".join(message.id) if len(strings) == 1 else one))
        wanted = set(FIELD.findall(message.id[-1] if isinstance(message.id, tuple) else one))
        broken += [
            f"{one!r} -> {text!r}"
            for text in filter(None, strings)
            if not (wanted <= set(FIELD.findall(text)) <= allowed | wanted)
        ]
        if message.fuzzy:
            doubtful.append(one)
    assert not missing, "without a translation:\n  " + "\n  ".join(map(repr, missing)) + HOW
    assert not broken, "other {fields} than the English text:\n  " + "\n  ".join(broken) + HOW
    assert not doubtful, f"marked fuzzy: look at them and take the mark away: {doubtful}" + HOW


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parts[-3])
def test_the_compiled_file_is_of_today(tool: ModuleType, path: Path) -> None:
    compiled = path.with_suffix(".mo")
    assert compiled.read_bytes() == tool.compiled(path), f"{compiled.name} is old" + HOW
    texts = gettext.translation("workbench", LOCALES, [path.parts[-3]])
    assert texts.gettext("Export") == "导出"
    assert texts.ngettext("{n} bit", "{n} bits", 8) == "{n} 位"


@pytest.mark.parametrize("path", WINDOWS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_text_goes_past_the_catalogue(path: Path) -> None:
    found = [f"{path.relative_to(ROOT)}:{line}: {text!r}" for line, text in plain_texts(path)]
    assert not found, (
        "a person reads these in English only:\n  " + "\n  ".join(found) + "\nPut each into "
        "_(…) of workbench.charts.text (in the app: workbench.app.i18n), whole sentences with "
        "{fields}: _('{n} of {m}').format(n=…, m=…); where a number decides the form, ngettext; "
        "a constant of a module is marked N_(…) and translated by _(…) where it is shown." + HOW
    )


@pytest.mark.parametrize("path", WINDOWS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_only_constants_are_looked_up(path: Path) -> None:
    """An f-string or a sum inside _() is never found in a catalogue."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            wanted = {"_": 1, "N_": 1, "ngettext": 2}.get(node.func.id, 0)
            for argument in node.args[:wanted]:
                assert not isinstance(argument, ast.JoinedStr | ast.BinOp), (
                    f"{path.relative_to(ROOT)}:{node.lineno}: only a constant text can be "
                    f"translated: write _('… {{name}} …').format(name=…)"
                )


def test_a_text_past_the_catalogue_is_found(tmp_path: Path) -> None:
    """The searcher itself: what it must see, and what it must leave alone."""
    file = tmp_path / "view.py"
    file.write_text(
        '"""A module of views and of words."""\n'
        'CSS = ".wb-row { display: grid now please; }"\n'
        'log.warning("the page could not be built")\n'
        "def build(n):\n"
        '    a = Button(label="Press me", icon="play_arrow", variant="text")\n'
        '    b = HTML(f"<b>{n} layers</b>")\n'
        '    c = "Nothing is measured yet"\n'
        '    d = _("Nothing is measured yet")\n'
        "    e = f\"<p>{escape(_('none'))}</p>\"\n"
        '    f = notice("done" if n else _("not done"))\n'
        '    raise WrongValue("an error of the engine stays as it is")\n'
    )
    assert sorted(plain_texts(file)) == [
        (5, "Press me"), (6, "layers"), (7, "Nothing is measured yet"), (10, "done"),
    ]  # fmt: skip


def test_the_package_brings_the_catalogues() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["workbench"]
    brought = {path for pattern in patterns for path in (ROOT / "workbench").glob(pattern)}
    assert {path.with_suffix(".mo") for path in CATALOGUES} <= brought
