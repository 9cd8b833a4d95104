"""The ``config`` dictionary of a single operator (specification chapter 30 section 9.2)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from workbench.engine.errors import WrongType
from workbench.engine.files.key_checks import SWITCH, Field, KeyChecker, one_of
from workbench.engine.files.problems import raise_problems
from workbench.engine.modules.qat.quantisers import ActivationSettings

logger = logging.getLogger("workbench.engine.modules")

_DATA, _WEIGHT = "retrain_data_config", "retrain_weight_config"
_BITS = {"INT8": 8, "INT16": 16}


@dataclass(frozen=True)
class OperatorConfig:
    """A checked configuration; ``data`` is complete, the weight's layout is the operator's."""

    enabled: bool
    data: ActivationSettings
    trained_scales: bool
    channel_wise: bool
    weight_bits: int = 8


@dataclass(frozen=True)
class Allowed:
    """What differs from operator to operator."""

    int16: bool = True
    weight: bool = True
    channel_wise: bool = True
    """The default: one scale for each output channel."""


def read_operator_config(
    config: Mapping[str, Any] | None, allowed: Allowed, *, where: str
) -> OperatorConfig:
    """Check a user's dictionary, which is not changed; None, and None for a value, mean defaults.

    Raises ``TypeError`` where a dictionary should be and is not, ``ValueError`` with every value
    that is not allowed. A key that no operator has is named in a warning.
    """
    source = f"{where} config"
    given = _dictionary(config, source)
    data = _dictionary(given.get(_DATA), f"{source}.{_DATA}")
    weight = _dictionary(given.get(_WEIGHT), f"{source}.{_WEIGHT}")
    checker = KeyChecker()
    top = _read(
        checker,
        "",
        {k: v for k, v in given.items() if k not in (_DATA, _WEIGHT)},
        {"retrain_enable": SWITCH},
    )
    data = _read(checker, f"{_DATA}.", data, _data_keys(allowed))
    weight = _read(checker, f"{_WEIGHT}.", weight, _weight_keys(allowed))
    raise_problems([replace(p, is_type=False) for p in checker.problems], source=source)
    return OperatorConfig(
        enabled=top.get("retrain_enable", True),
        data=ActivationSettings(
            bits=_BITS[data.get("dst_type", "INT8")],
            batch_num=data.get("batch_num", 1),
            fixed_min=data.get("fixed_min", False),
            clip_max=data.get("clip_max"),
            clip_min=data.get("clip_min") if "clip_max" in data else None,
            quantise_first=False,
            deploy_state=True,
        ),
        trained_scales=weight.get("weights_retrain_algo") == "ulq_retrain",
        channel_wise=weight.get("channel_wise", allowed.channel_wise),
    )


def _data_keys(allowed: Allowed) -> dict[str, Field]:
    return {
        "dst_type": one_of("str", "INT8", *(["INT16"] if allowed.int16 else [])),
        "batch_num": Field("int", "a whole number above 0", lambda v: v > 0),
        "fixed_min": SWITCH,
        "clip_max": Field("float", "a number above 0", lambda v: v > 0),
        "clip_min": Field("float", "a number below 0", lambda v: v < 0),
    }


def _weight_keys(allowed: Allowed) -> dict[str, Field]:
    if not allowed.weight:
        return {}
    return {
        "dst_type": one_of("str", "INT8"),
        "weights_retrain_algo": one_of("str", "arq_retrain", "ulq_retrain"),
        "channel_wise": SWITCH,
    }


def _dictionary(value: Any, source: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise WrongType(f"it is a {type(value).__name__}; allowed: dict, None", where=source)
    return {key: item for key, item in value.items() if item is not None}


def _read(
    checker: KeyChecker, path: str, values: Mapping[str, Any], fields: Mapping[str, Field]
) -> dict[str, Any]:
    result = {}
    for key, value in values.items():
        if key in fields:
            checked = checker.check("", f"{path}{key}", value, fields[key])
            if checked is not None:
                result[key] = checked
        else:
            logger.warning("config key %s%s is not known and ignored", path, key)
    return result
