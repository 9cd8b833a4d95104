"""Parts of pages that are read from the code: ``<!-- generated: NAME -->`` in a page's source."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator
from typing import Any

MARK = re.compile(r"<!-- generated: ([\w-]+) -->")


def commands() -> str:
    """Every command of ``workbench`` with its options, from the parser itself."""
    from workbench.cli.main import parser

    top = parser()
    (choices,) = (a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    parts = []
    over_projects = [one for name, one in choices.choices.items() if name != "serve"]
    common = set.intersection(*({a.dest for a in one._actions} for one in over_projects))
    for name, one in choices.choices.items():
        help_text = next(a.help for a in choices._choices_actions if a.dest == name)
        usage = one.format_usage().replace("\n" + " " * 7, "\n").removeprefix("usage: ").strip()
        parts.append(f"## workbench {name}\n\n{_sentence(help_text)}\n\n```text\n{usage}\n```\n")
        rows = [a for a in one._actions if name == "serve" or a.dest not in common]
        parts.append(_options([a for a in rows if a.dest != "help"]))
    shared = [a for a in over_projects[0]._actions if a.dest in common and a.dest != "help"]
    parts.append("## What all commands over projects take\n")
    parts.append(_options(shared))
    return "\n".join(parts)


def _options(actions: list[Any]) -> str:
    if not actions:
        return ""
    rows = ["| Option | Default | What it says |", "|---|---|---|"]
    for action in actions:
        name = ", ".join(action.option_strings) or action.dest.upper()
        if action.option_strings and action.nargs != 0 and not action.choices:
            name += " " + str(action.metavar or action.dest.upper())
        default = "" if action.default in (None, False, [], argparse.SUPPRESS) else action.default
        text = _sentence(action.help or "")
        if action.choices:
            text = f"{text} One of {', '.join(f'`{c}`' for c in action.choices)}.".strip()
        rows.append(f"| `{name}` | {f'`{default}`' if default != '' else ''} | {text} |")
    return "\n".join(rows) + "\n"


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("." if text and text[-1] not in ".)" else "")


def amct() -> str:
    """Every name of ``workbench.amct`` with the paths that it can be imported from."""
    import workbench.amct
    import workbench.amct_onnx
    import workbench.engine

    paths: dict[str, list[str]] = {}
    for package in (workbench.amct, workbench.amct_onnx):
        modules = [package.__name__]
        modules += [m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
        for path in modules:
            for name in getattr(importlib.import_module(path), "__all__", ()):
                paths.setdefault(name, []).append(path)
    flat = set(workbench.engine.__all__)
    rows = ["| Name | Import it from | Described at |", "|---|---|---|"]
    for name in sorted(paths, key=str.lower):
        found = "<br>".join(f"`{path}`" for path in sorted(paths[name], key=len))
        described = name in flat and not name.endswith("_CFG")
        link = f"[`{name}`](#workbench.engine.{name})" if described else ""
        rows.append(f"| `{name}` | {found} | {link} |")
    return "\n".join(rows) + "\n"


def session_attributes() -> str:
    """What can be read from a session, and watched."""
    from workbench.studio import Session

    rows = ["| Attribute | What it holds |", "|---|---|"]
    for name, parameter in Session.param.objects().items():
        if name != "name":
            rows.append(f"| `{name}` | {_sentence(parameter.doc or '')} |")
    return "\n".join(rows) + "\n"


def presets() -> str:
    """Every ready-made configuration of ``quantize`` and what it asks for."""
    from workbench import engine

    rows = ["| Name | Weights | Inputs | Algorithm |", "|---|---|---|---|"]
    for name in (n for n in engine.__all__ if n.endswith("_CFG")):
        config = getattr(engine, name)
        weights, inputs = (_format(config["quant_cfg"].get(k)) for k in ("weights", "inputs"))
        rows.append(f"| `{name}` | {weights} | {inputs} | `{next(iter(config['algorithm']))}` |")
    return "\n".join(rows) + "\n"


def _format(given: dict[str, Any] | None) -> str:
    if not given:
        return "float"
    size = f" of {given['group_size']}" if given.get("group_size") else ""
    return f"`{given['type']}`, one scale a {given['strategy']}{size}"


def ptq_keys() -> str:
    """The keys of a post-training configuration and their allowed values, from its rules."""
    from workbench.engine.files import config_rules as rules

    layer = {
        "quant_enable": SWITCH,
        "dmq_balancer_param": "a number from 0.2 to 0.8; absent: no balance",
    }
    return _keys(
        ("", rules.GLOBAL_KEYS),
        ("", layer),
        ("activation_quant_params", rules.ACTIVATION_KEYS),
        ("weight_quant_params", rules.WEIGHT_KEYS),
    )


def qat_keys() -> str:
    from workbench.engine.files import retrain_rules as rules

    return _keys(
        ("", rules.RETRAIN_GLOBALS),
        ("", {"retrain_enable": SWITCH}),
        (rules.DATA, rules.DATA_KEYS),
        (rules.WEIGHT, rules.WEIGHT_KEYS),
    )


def distill_keys() -> str:
    from workbench.engine.files import distill_rules as rules

    groups = {rules.GROUPS: "lists of names of modules that read one another, in order"}
    return _keys(
        ("", rules.GLOBAL_KEYS),
        ("", groups),
        ("", {"quant_enable": SWITCH}),
        (rules.ACTIVATION, rules._ACTIVATION_KEYS),
        (rules.WEIGHT, rules._WEIGHT_KEYS),
    )


SWITCH = "true, false"


def _keys(*sections: tuple[str, Any]) -> str:
    rows = ["| Key | Allowed |", "|---|---|"]
    for section, keys in sections:
        for name, field in keys.items():
            allowed = field if isinstance(field, str) else field.allowed
            path = f"{section}.{name}" if section else name
            where = "*layer* · " if section or name.endswith(("_enable", "_param")) else ""
            rows.append(f"| {where}`{path}` | {allowed} |")
    return "\n".join(rows) + "\n"


GENERATED: dict[str, Callable[[], str]] = {
    "commands": commands,
    "amct": amct,
    "session-attributes": session_attributes,
    "presets": presets,
    "ptq-keys": ptq_keys,
    "qat-keys": qat_keys,
    "distill-keys": distill_keys,
}


def marks(text: str) -> Iterator[str]:
    """The names of the generated parts of a page."""
    return (found[1] for found in MARK.finditer(text))


def fill(_app: Any, _page: str, source: list[str]) -> None:
    source[0] = MARK.sub(lambda found: GENERATED[found[1]](), source[0])


def setup(app: Any) -> dict[str, bool]:
    app.connect("source-read", fill)
    return {"parallel_read_safe": True}
