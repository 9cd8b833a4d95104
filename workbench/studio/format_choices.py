"""Which way each layer is quantised, as dicts that ``quantize`` takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from glob import escape
from typing import Any

from workbench.engine.errors import WrongValue

FLOAT = "float"
ANY = ""
"""A layer of a type that is not known."""
SEPARATOR = " · "
DEFAULT = "int8 · minmax"
HEAD = "lm_head"
"""Layers with this in their name stay float unless chosen, as in the presets."""


def ways_by_format() -> dict[str, list[str]]:
    """Algorithms by formats ("int8", "int8/int8", …), for menus; float has none."""
    from workbench.engine.analysis.module_formats import WAYS

    found: dict[str, list[str]] = {FLOAT: []}
    for way in WAYS:
        formats, algorithm = way.split(SEPARATOR)
        found.setdefault(formats, []).append(algorithm)
    return found


def default_way(name: str, kind: str) -> str:
    """What holds for a layer that nobody chose anything for."""
    return FLOAT if HEAD in name or kind != "Linear" else DEFAULT


def check_way(name: str, kind: str, way: Any) -> str:
    """``way`` as it is; ``WrongValue`` when there is none of that name or not for this layer.

    ``kind``: the layer's type, or ``ANY`` where it is not known.
    """
    from workbench.engine.analysis.module_formats import WAYS

    if way == FLOAT:
        return FLOAT
    if way not in WAYS:
        raise WrongValue(
            f"there is no way {way!r} to quantise a layer",
            where=name,
            hint=f"Allowed: float, {', '.join(WAYS)}.",
        )
    if kind != ANY and not WAYS[way].takes(kind):
        allowed = [key for key, one in WAYS.items() if one.takes(kind)]
        raise WrongValue(
            f"{way} does not take {kind} layers",
            where=name,
            hint=f"Allowed: {', '.join([FLOAT, *allowed])}.",
        )
    return str(way)


def configs_of(ways: Mapping[str, str], batch_num: int) -> tuple[dict[str, Any], ...]:
    """Configurations, one an algorithm, that do exactly what ``ways`` says of every layer.

    With one algorithm its most frequent formats stand for all layers, exceptions are patterns and
    what stays float is in ``skip_layers``; with several each layer has a pattern of its own.
    Chapter 25 section 2.
    """
    from workbench.engine.analysis.module_formats import WAYS

    by_algorithm: dict[str, dict[str, str]] = {}
    for name, way in ways.items():
        if way != FLOAT:
            by_algorithm.setdefault(WAYS[way].algorithm, {})[name] = way
    return tuple(
        _config(chosen, ways, batch_num, alone=len(by_algorithm) == 1)
        for chosen in by_algorithm.values()
    )


def _config(
    chosen: Mapping[str, str], ways: Mapping[str, str], batch_num: int, *, alone: bool
) -> dict[str, Any]:
    from workbench.engine.analysis.module_formats import WAYS

    left = [name for name in ways if name not in chosen]
    # skip_layers goes by parts of names.
    plain = alone and not any(part in name for part in left for name in chosen)
    usual = Counter(chosen.values()).most_common(1)[0][0] if plain else None
    sections: dict[str, Any] = {}
    if usual is not None:
        sections["weights"] = dict(WAYS[usual].weights)
        if WAYS[usual].inputs is not None:
            sections["inputs"] = dict(WAYS[usual].inputs or {})
    for name, way in chosen.items():
        if way == usual:
            continue
        pattern, one = _pattern(name, ways), WAYS[way]
        sections[f"{pattern}.weights"] = dict(one.weights)
        if one.inputs is not None:
            sections[f"{pattern}.inputs"] = dict(one.inputs)
        elif "inputs" in sections:
            sections[f"{pattern}.inputs"] = {"enable_quant": False}
    return {
        "batch_num": batch_num,
        "quant_cfg": sections,
        "algorithm": WAYS[next(iter(chosen.values()))].options,
        "skip_layers": left if plain else [],
    }


def _pattern(name: str, names: Mapping[str, str]) -> str:
    """A pattern that matches this layer alone; one must have a star in it."""
    if any(other != name and other.endswith(name) for other in names):
        # No name begins with a star: this class matches the first letter only.
        return f"[*{name[0]}]{escape(name[1:])}"
    return f"*{escape(name)}"


def dtype_note(ways: Mapping[str, str], dtypes: Mapping[str, str]) -> dict[str, list[str]]:
    """Ways that the float type of their layers is in the way of, and those layers."""
    from workbench.engine.analysis.module_formats import WAYS

    found: dict[str, list[str]] = {}
    for name, way in ways.items():
        if way == FLOAT:
            continue
        allowed = [str(dtype).removeprefix("torch.") for dtype in WAYS[way].dtypes]
        if dtypes[name] not in allowed:
            found.setdefault(way, []).append(name)
    return found


def config_text(configs: Sequence[Mapping[str, Any]]) -> str:
    """As Python to paste, a name for each and a line for each section."""
    blocks = []
    for number, config in enumerate(configs, 1):
        name = "config" if len(configs) == 1 else f"config_{number}"
        lines = [f"{name} = {{"]
        for key, value in config.items():
            if key == "quant_cfg":
                lines.append(f"    {key!r}: {{")
                lines += [f"        {part!r}: {section!r}," for part, section in value.items()]
                lines.append("    },")
            else:
                lines.append(f"    {key!r}: {value!r},")
        blocks.append("\n".join([*lines, "}"]))
    return "\n\n".join(blocks) + "\n" * bool(blocks)


def program_text(configs: Sequence[Mapping[str, Any]], float_type: str) -> str:
    """The configurations and what to do with them, for a ``model`` and its ``batches``."""
    if not configs:
        return ""
    single = len(configs) == 1
    names = "config" if single else ", ".join(f"config_{i}" for i in range(1, len(configs) + 1))
    cast = float_type in ("bfloat16", "float16")
    option = ", any_dtype=True" if float_type == "any" else ""
    lines = ["import workbench.engine as engine", "", config_text(configs)]
    if cast:
        lines += ["import torch", "", f"model = model.to(torch.{float_type})  # and its inputs"]
    if single:
        lines.append(f"engine.quantize(model, config{option})")
    else:
        lines += [f"for config in ({names}):", f"    engine.quantize(model, config{option})"]
    lines += ["for batch in batches:", "    model(*batch)", "engine.convert(model)"]
    return "\n".join(lines) + "\n"
