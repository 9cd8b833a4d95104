"""The dict that ``quantize`` takes: fields, per-layer patterns, algorithms."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from workbench.engine.files.key_checks import Field, KeyChecker, one_of
from workbench.engine.files.problems import Problem, raise_problems
from workbench.engine.flows.arguments import check_type
from workbench.engine.flows.module_quantize_presets import INT8_MINMAX_WEIGHT_QUANT_CFG

WEIGHT_TYPES = (
    "int8",
    "int4",
    "hifloat8",
    "float8_e4m3fn",
    "mxfp8_e4m3fn",
    "mxfp4_e2m1",
    "float4_e2m1",
)
INPUT_TYPES = ("int8", "int4", "hifloat8", "float8_e4m3fn", "mxfp8_e4m3fn")
GROUP_SIZES: Mapping[str, tuple[int, ...] | None] = {
    "int8": None,
    "int4": None,
    "float4_e2m1": (32, 64, 128, 256),
    "mxfp4_e2m1": (32,),
    "mxfp8_e4m3fn": (32,),
}
"""Types that groups are for, and the sizes allowed (None: every multiple of 32)."""

SECTIONS = ("weights", "inputs", "kvcache")
_SOURCE = "quantize() config"
_BOOL = Field("bool", "True, False")
_WEIGHTS = {
    "type": one_of("str", *WEIGHT_TYPES),
    "symmetric": _BOOL,
    "strategy": one_of("str", "tensor", "channel", "group"),
    "group_size": Field(
        "int", "a multiple of 32 above 0", lambda value: value >= 32 and value % 32 == 0
    ),
}
_INPUTS = {
    "enable_quant": _BOOL,
    "type": one_of("str", *INPUT_TYPES),
    "symmetric": _BOOL,
    "strategy": one_of("str", "tensor", "token", "group"),
    "dynamic": _BOOL,
}
_KV_CACHE = {
    "enable_quant": _BOOL,
    "type": one_of("str", "hifloat8"),
    "symmetric": Field("bool", "True", bool),
    "strategy": one_of("str", "tensor"),
}
_FIELDS = {"weights": _WEIGHTS, "inputs": _INPUTS, "kvcache": _KV_CACHE}
_MUST = {
    "awq": {"grids_num": Field("int", "a whole number above 0", lambda value: value > 0)},
    "smoothquant": {
        "smooth_strength": Field("float", "a number inside (0, 1)", lambda value: 0 < value < 1)
    },
}
_MAY: dict[str, dict[str, Field]] = {
    "gptq": {
        "damping": Field("float", "a number in (0, 1]", lambda value: 0 < value <= 1),
        "activation_order": _BOOL,
        "block_size": Field("int", "a whole number above 0", lambda value: value > 0),
    },
    "ofmr": {"centred": _BOOL},
}
WITH_OPTIONS = (*_MUST, *_MAY)
"""Built-in algorithms with options: those of ``_MUST`` must be given, those of ``_MAY`` may."""


@dataclass(frozen=True)
class LayerConfig:
    """What one layer is quantised to: the sections of ``quant_cfg`` that hold for it."""

    weights: Mapping[str, Any] | None
    inputs: Mapping[str, Any] | None
    kvcache: Mapping[str, Any] | None

    @property
    def pair(self) -> tuple[str | None, str | None]:
        """Types of activations (None: weight-only) and weights."""
        inputs = self.inputs["type"] if self.inputs else None
        return inputs, self.weights["type"] if self.weights else None

    def as_dict(self, batch_num: int, algorithm: Mapping[str, Any]) -> dict[str, Any]:
        """The dict that a calibration module is built with. Chapter 25 section 2."""
        off = {"enable_quant": False}
        inputs: dict[str, Any] = off
        if self.inputs:
            inputs = {**_renamed(self.inputs), "dynamic": self.inputs.get("dynamic")}
        return {
            "batch_num": batch_num,
            "weights_cfg": _renamed(self.weights) if self.weights else None,
            "inputs_cfg": inputs,
            "kvcache_cfg": _renamed(self.kvcache) if self.kvcache else dict(off),
            "algorithm": copy.deepcopy(dict(algorithm)),
        }


@dataclass(frozen=True)
class Pattern:
    """An override: ``glob`` with its suffix, the section it replaces, and what by."""

    glob: str
    section: str
    value: Mapping[str, Any] | None

    def matches(self, layer: str) -> bool:
        names = (layer, *(f"{layer}.{section}" for section in SECTIONS))
        return any(fnmatchcase(name, self.glob) for name in names)


@dataclass(frozen=True)
class ModuleQuantConfig:
    """A configuration whose fields are checked. ``algorithms``: options by name, None for none."""

    batch_num: int
    everywhere: LayerConfig
    patterns: tuple[Pattern, ...]
    algorithms: Mapping[str, Mapping[str, Any] | None]
    skip_layers: tuple[str, ...]

    def of_layer(self, layer: str) -> LayerConfig:
        """What holds for ``layer``: the first pattern that matches, section by section."""
        resolved = self.everywhere
        for section in SECTIONS:
            for pattern in self.patterns:
                if pattern.section == section and pattern.matches(layer):
                    resolved = replace(resolved, **{section: pattern.value})
                    break
        return resolved

    def skips(self, layer: str) -> str | None:
        """The entry of ``skip_layers`` that is part of the layer's name."""
        return next((entry for entry in self.skip_layers if entry in layer), None)


def parse_config(config: Mapping[str, Any] | None) -> ModuleQuantConfig:
    """Check the fields of ``config`` (None: INT8_MINMAX_WEIGHT_QUANT_CFG), which stays as it is.

    Raises ``TypeError`` when it is no dict, else one ``ValueError`` that lists every problem.
    Chapter 25 section 2.
    """
    check_type("quantize", "config", config, dict, optional=True)
    given = copy.deepcopy(INT8_MINMAX_WEIGHT_QUANT_CFG if config is None else dict(config))
    checker = KeyChecker()
    checker.unknown_keys("", "", given, ("batch_num", "quant_cfg", "algorithm", "skip_layers"))
    positive = Field("int", "a whole number above 0", lambda value: value > 0)
    batch_num = checker.check("", "batch_num", given.get("batch_num", 1), positive)
    everywhere, patterns = _quant_cfg(checker, given.get("quant_cfg"))
    algorithms = _algorithms(checker, given.get("algorithm"))
    skipped = _skip_layers(checker, given.get("skip_layers"))
    # Every fault of this dict is a ValueError, as the chapter says.
    raise_problems([replace(p, is_type=False) for p in checker.problems], source=_SOURCE)
    return ModuleQuantConfig(batch_num, everywhere, patterns, algorithms, skipped)


def _renamed(section: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in section.items() if key not in ("type", "enable_quant")}
    kept.pop("dynamic", None)
    return {"quant_type": section["type"], **kept}


def _quant_cfg(checker: KeyChecker, value: Any) -> tuple[LayerConfig, tuple[Pattern, ...]]:
    sections: dict[str, Mapping[str, Any] | None] = dict.fromkeys(SECTIONS)
    patterns: list[Pattern] = []
    if not isinstance(value, dict):
        checker.add("", "quant_cfg", value, "a dict with 'weights', 'inputs', 'kvcache'")
        return LayerConfig(**sections), ()
    for key, item in value.items():
        suffix = key.rpartition(".")[2] if isinstance(key, str) else ""
        if key in SECTIONS:
            sections[key] = _section(checker, key, key, item)
        elif suffix in SECTIONS and "*" in key and "." in key:
            patterns.append(Pattern(key, suffix, _section(checker, suffix, key, item)))
        else:
            checker.add(
                "",
                "quant_cfg key",
                key,
                "weights, inputs, kvcache, or a pattern with * that ends in .weights, .inputs "
                "or .kvcache",
            )
    if not checker.problems and not (
        sections["weights"] or sections["kvcache"] or any(p.value for p in patterns)
    ):
        checker.add("", "quant_cfg", value, "one with weights or kvcache to quantise")
    return LayerConfig(**sections), tuple(patterns)


def _section(checker: KeyChecker, section: str, key: str, value: Any) -> Mapping[str, Any] | None:
    """A checked sub-dict; None where it is switched off or wrong (which is noted)."""
    before = len(checker.problems)
    path = f"quant_cfg.{key}"
    if isinstance(value, dict) and value.get("dynamic", "") is None:
        value = {name: item for name, item in value.items() if name != "dynamic"}
    checked = checker.section("", path, value, _FIELDS[section])
    if section != "weights" and checked.get("enable_quant") is False:
        return None
    if isinstance(value, dict):
        for name in ("type", "symmetric", "strategy"):
            if name not in value:
                _missing(checker, f"{path}.{name}", _FIELDS[section][name].allowed)
    if len(checker.problems) == before:
        _mixtures(checker, section, path, checked)
    return checked if len(checker.problems) == before else None


def _mixtures(checker: KeyChecker, section: str, path: str, checked: Mapping[str, Any]) -> None:
    """Fields that are right alone and wrong together."""
    type_, strategy, symmetric = (checked[key] for key in ("type", "strategy", "symmetric"))
    if section == "weights":
        if not symmetric and type_ not in ("int8", "int4"):
            checker.add("", f"{path}.symmetric", False, f"True for {type_}")
        _group_size(checker, path, checked)
    elif section == "inputs":
        if not symmetric and (type_ != "int8" or strategy != "tensor"):
            checker.add(
                "", f"{path}.symmetric", False, "True, unless type is int8 and strategy tensor"
            )
        if (type_ == "mxfp8_e4m3fn") != (strategy == "group"):
            allowed = "group" if type_ == "mxfp8_e4m3fn" else "tensor, token"
            checker.add("", f"{path}.strategy", strategy, f"{allowed} for {type_}")
        if "dynamic" in checked and strategy != "token":
            checker.add(
                "", f"{path}.dynamic", checked["dynamic"], "no such key unless strategy is token"
            )


def _group_size(checker: KeyChecker, path: str, checked: Mapping[str, Any]) -> None:
    type_, strategy, size = checked["type"], checked.get("strategy"), checked.get("group_size")
    key = f"{path}.group_size"
    if strategy != "group":
        if size is not None:
            checker.add("", key, size, "no such key unless strategy is group")
        return
    if type_ not in GROUP_SIZES:
        checker.add("", f"{path}.strategy", strategy, f"tensor, channel for {type_}")
    elif size is None:
        _missing(checker, key, "a multiple of 32, as strategy is group")
    else:
        sizes = GROUP_SIZES[type_]
        if sizes is not None and size not in sizes:
            allowed = ", ".join(map(str, sizes))
            checker.add("", key, size, f"{allowed} for {type_}")


def _missing(checker: KeyChecker, key: str, allowed: str) -> None:
    checker.problems.append(Problem("", key, "missing", allowed))


def _algorithms(checker: KeyChecker, value: Any) -> dict[str, Mapping[str, Any] | None]:
    """Options by name. A set has no order: names are sorted, so that runs are alike."""
    allowed = "a name, a set of names, or a dict of name: options"
    if isinstance(value, str):
        names: dict[Any, Any] = {value: None}
    elif isinstance(value, dict):
        names = dict(value)
    elif isinstance(value, set | frozenset | list | tuple):
        names = dict.fromkeys(sorted(value, key=str))
    else:
        names = {}
    if not names or any(not isinstance(name, str) for name in names):
        checker.add("", "algorithm", value, allowed)
        return {}
    for name, options in names.items():
        if name not in WITH_OPTIONS:
            continue
        given = {} if options is None else options
        needed = _MUST.get(name, {})
        checker.section("", f"algorithm.{name}", given, {**needed, **_MAY.get(name, {})})
        if isinstance(given, dict):
            for key in needed.keys() - given.keys():
                _missing(checker, f"algorithm.{name}.{key}", needed[key].allowed)
    return names


def _skip_layers(checker: KeyChecker, value: Any) -> tuple[str, ...]:
    """Names as a tuple; one string is one name, not its letters."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, Iterable) or isinstance(value, bytes):
        checker.add("", "skip_layers", value, "a list or set of parts of layer names")
        return ()
    entries = list(value)
    for entry in entries:
        if not isinstance(entry, str) or not entry:
            checker.add("", "skip_layers", entry, "parts of layer names, as non-empty strings")
    return tuple(entries)
