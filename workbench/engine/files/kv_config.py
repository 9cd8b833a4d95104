"""The configuration of key-value cache calibration: which layers are watched, and how."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from workbench.engine.errors import WrongState
from workbench.engine.files.config_json import duplicate_keys, load_json
from workbench.engine.files.config_rules import ACTIVATION_KEYS, IFMR_ONLY
from workbench.engine.files.key_checks import SWITCH, Field, KeyChecker, one_of, repeated_names
from workbench.engine.files.problems import Problem, raise_problems
from workbench.engine.files.reading import read_text

LINEAR = "Linear"
METHOD = "kv_cache_quant_layers"
SECTION = "kv_data_quant_config"
PER_TENSOR, PER_CHANNEL = 0, 1

GLOBAL_KEYS: dict[str, Field] = {
    "batch_num": Field("int", "a whole number above 0", lambda v: v > 0),
    "activation_offset": SWITCH,
}
LAYER_KEYS: dict[str, Field] = {
    **{key: spec for key, spec in ACTIVATION_KEYS.items() if key != "num_bits"},
    "quant_granularity": one_of("int", PER_TENSOR, PER_CHANNEL),
}
"""The keys of a layer's ``kv_data_quant_config``, with the rules of the other flows."""


@dataclass(frozen=True)
class KVParams:
    """How one tensor is observed; ``asymmetric`` None: the global ``activation_offset``."""

    act_algo: str = "ifmr"
    max_percentile: float = 0.999999
    min_percentile: float = 0.999999
    search_range: tuple[float, float] = (0.7, 1.3)
    search_step: float = 0.01
    num_of_bins: int = 4096
    asymmetric: bool | None = None
    quant_granularity: int = PER_TENSOR

    @property
    def per_channel(self) -> bool:
        """Whether every index of the last axis has factors of its own."""
        return self.quant_granularity == PER_CHANNEL

    def to_dict(self) -> dict[str, Any]:
        """The keys that the algorithm uses, in the order of the format."""
        result: dict[str, Any] = {"act_algo": self.act_algo}
        if self.act_algo == "ifmr":
            result |= {
                "max_percentile": self.max_percentile,
                "min_percentile": self.min_percentile,
                "search_range": list(self.search_range),
                "search_step": self.search_step,
            }
        else:
            result["num_of_bins"] = self.num_of_bins
        if self.asymmetric is not None:
            result["asymmetric"] = self.asymmetric
        return result | {"quant_granularity": self.quant_granularity}


@dataclass(frozen=True)
class KVConfig:
    """A whole configuration (chapter 25 section 14)."""

    batch_num: int = 1
    activation_offset: bool = True
    layers: Mapping[str, KVParams] = field(default_factory=dict)

    def to_json(self) -> str:
        """The file's text: global keys, then layers in their order."""
        data: dict[str, Any] = {
            "batch_num": self.batch_num,
            "activation_offset": self.activation_offset,
        }
        data |= {name: {SECTION: layer.to_dict()} for name, layer in self.layers.items()}
        return json.dumps(data, indent=4, separators=(",", ":"), ensure_ascii=False)

    def asymmetric(self, name: str) -> bool:
        """Whether the layer's factors have an offset, after the global default is applied."""
        own = self.layers[name].asymmetric
        return self.activation_offset if own is None else own


def default_kv_config(names: Sequence[str], modules: Mapping[str, str]) -> KVConfig:
    """The built-in defaults for these layers; ``modules``: class name of every module.

    Raises ``RuntimeError`` when ``names`` is empty, one ``ValueError`` with everything that is
    wrong with them.
    """
    source = f"quant_layers[{METHOD!r}]"
    raise_problems(name_problems(names, modules), source=source)
    require_layers(names, source=source)
    return KVConfig(layers={name: KVParams() for name in names})


def name_problems(names: Sequence[str], modules: Mapping[str, str]) -> list[Problem]:
    """What is wrong with a selection of layers: unknown names, other classes, repetitions."""
    problems = repeated_names("the layer", names)
    for name in dict.fromkeys(names):
        kind = modules.get(name)
        if kind is None:
            problems.append(Problem("", "the layer", repr(name), _known(name, modules)))
        elif kind != LINEAR:
            problems.append(Problem("", "the layer", f"{name!r} ({kind})", f"{LINEAR} layers"))
        elif name in GLOBAL_KEYS:
            problems.append(Problem("", "the layer", repr(name), "names that are no global key"))
    return problems


def require_layers(names: Collection[str], *, source: str) -> None:
    """Raise ``RuntimeError`` when nothing is selected."""
    if not names:
        raise WrongState(
            "no layer is selected", where=source, hint=f"Name at least one {LINEAR} layer."
        )


def parse_kv_config(
    text: str, *, source: str, modules: Mapping[str, str] | None = None
) -> KVConfig:
    """Read and check a JSON configuration; ``modules``: class name of every module of the model.

    A module that is no Linear stays in the result when it is per tensor, and is passed over later.
    Missing keys take their defaults. All problems are collected in one error: ``TypeError`` for
    wrong JSON types, ``ValueError`` for the rest; ``RuntimeError`` when no Linear layer is left.
    Chapter 25 section 14.
    """
    data, repeated = load_json(text, source=source)
    reader = KVReader()
    reader.problems += duplicate_keys(repeated)
    if not isinstance(data, dict):
        reader.add("", "the file", data, "a JSON object", is_type=True)
        raise_problems(reader.problems, source=source)
        return KVConfig()
    top, entries = {}, {}
    for name, value in data.items():
        if name in GLOBAL_KEYS:
            checked = reader.check("", name, value, GLOBAL_KEYS[name])
            if checked is not None:
                top[name] = checked
            continue
        params = reader.read_layer(name, value, modules)
        if params is not None:
            entries[name] = params
    raise_problems(reader.problems, source=source)
    usable = [name for name in entries if modules is None or modules[name] == LINEAR]
    require_layers(usable, source=source)
    return KVConfig(**top, layers=entries)


def read_kv_config(
    path: str | os.PathLike[str], modules: Mapping[str, str] | None = None
) -> KVConfig:
    """``parse_kv_config`` of a file; ``FileNotFoundError`` when it is missing."""
    return parse_kv_config(read_text(path, what="configuration"), source=str(path), modules=modules)


class KVReader(KeyChecker):
    """Checks the parsed JSON piece by piece and collects every problem on the way."""

    def read_layer(
        self, name: str, value: Any, modules: Mapping[str, str] | None
    ) -> KVParams | None:
        kind = None
        if modules is not None:
            kind = modules.get(name)
            if kind is None:
                allowed = f"{', '.join(GLOBAL_KEYS)}, or {_known(name, modules)}"
                self.problems.append(Problem("", "the key", repr(name), allowed))
                return None
        if not isinstance(value, dict):
            self.add(name, "the entry", value, "an object", is_type=True)
            return None
        self.unknown_keys(name, "", value, (SECTION,))
        params = self.read_params(name, f"{SECTION}.", value.get(SECTION, {}))
        if params.per_channel and kind not in (None, LINEAR):
            self.add(name, f"{SECTION}.quant_granularity", 1, f"0 for a {kind}")
        return params

    def read_params(self, name: str, prefix: str, value: Any) -> KVParams:
        """The settings of one layer; a wrong one has its default, so that reading can go on."""
        raw = dict(value) if isinstance(value, dict) else value
        if isinstance(raw, dict) and raw.get("asymmetric", False) is None:
            del raw["asymmetric"]
        result = self.section(name, prefix.rstrip("."), raw, LAYER_KEYS)
        algorithm = result.get("act_algo", "ifmr")
        if algorithm == "hfmg":
            for key in IFMR_ONLY:
                if key in result:
                    self.problems.append(
                        Problem(name, f"{prefix}{key}", "given", "only with act_algo ifmr")
                    )
        elif "num_of_bins" in result:
            self.add(name, f"{prefix}num_of_bins", result["num_of_bins"], "only with act_algo hfmg")
        self._check_step(name, prefix, result)
        return KVParams(**result)

    def _check_step(self, name: str, prefix: str, result: Mapping[str, Any]) -> None:
        start, end = result.get("search_range", KVParams.search_range)
        # Decimal, because 0.6 > 1.3 - 0.7 in binary.
        span = Decimal(str(end)) - Decimal(str(start))
        step = result.get("search_step", KVParams.search_step)
        if Decimal(str(step)) > span:
            allowed = f"a number in (0, {span}], search_range's length"
            self.add(name, f"{prefix}search_step", step, allowed)


def _known(name: str, modules: Mapping[str, str]) -> str:
    """What a wrong name could have been."""
    linear = [known for known, kind in modules.items() if kind == LINEAR]
    close = difflib.get_close_matches(name, linear, n=3)
    listed = f", such as {', '.join(close)}" if close else " of the model"
    return f"names of {LINEAR} layers{listed}"
