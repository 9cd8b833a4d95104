"""The text configuration (``.cfg``) of key-value cache calibration.

Source: specification chapter 25 section 15.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.engine.errors import MissingFile, WrongState
from workbench.engine.files.key_checks import repeated_names
from workbench.engine.files.kv_config import (
    GLOBAL_KEYS,
    KVConfig,
    KVParams,
    KVReader,
    name_problems,
    require_layers,
)
from workbench.engine.files.problems import Problem, raise_problems
from workbench.engine.files.proto_schema import message_class
from workbench.engine.files.reading import read_text
from workbench.engine.files.text_blocks import shortest
from workbench.engine.files.text_message import merge_text, required_problems

_FLOATS = ("max_percentile", "min_percentile", "search_step")
_COMMON, _OVERRIDE = "kv_cache_quant_config", "override_layers_configs"


class MissingTextConfig(MissingFile, WrongState):
    """A text configuration that is not there; also a ``RuntimeError``, as in the reference."""


def read_kv_text_config(path: str | os.PathLike[str], modules: Mapping[str, str]) -> KVConfig:
    """The configuration that a ``.cfg`` file means; ``modules``: class name of every module.

    An override beats the common settings and adds its layer. Errors: ``RuntimeError`` (and
    ``FileNotFoundError``) when the file is missing, ``RuntimeError`` when it selects nothing;
    ``TextConfigError`` (``ParseError``) naming the line; one ``ValueError`` with all the rest.
    """
    if not Path(path).is_file():
        raise MissingTextConfig("the text configuration does not exist", where=os.fspath(path))
    text = read_text(path, what="text configuration")
    return parse_kv_text_config(text, source=os.fspath(path), modules=modules)


def parse_kv_text_config(text: str, *, source: str, modules: Mapping[str, str]) -> KVConfig:
    """``read_kv_text_config`` of a text."""
    name = "AMCTPytorchQuantCaliProto.AMCTQuantCaliConfig"
    message = message_class("quant_cali_config.proto", name)()
    merge_text(text, message, source=source)
    problems = required_problems(message)
    spec = GLOBAL_KEYS["batch_num"]
    if not spec.fits(message.batch_num):
        problems.append(Problem("", "batch_num", str(message.batch_num), spec.allowed))
    common = message.kv_cache_quant_config
    overrides = [o for o in message.override_layers_configs if o.HasField("layer_name")]
    named = [override.layer_name for override in overrides]
    problems += repeated_names(f"{_COMMON}.quant_layers", list(common.quant_layers))
    problems += repeated_names(_OVERRIDE, named)
    selected = list(dict.fromkeys([*common.quant_layers, *named]))
    problems += name_problems(selected, modules)
    reader = KVReader()
    shared = _params(reader, common.calibration_config, f"{_COMMON}.calibration_config")
    layers = dict.fromkeys(selected, shared)
    for override in overrides:
        where = f"{_OVERRIDE} {override.layer_name!r}"
        layers[override.layer_name] = _params(reader, override.kv_data_quant_config, where)
    raise_problems([*problems, *reader.problems], source=source)
    require_layers(selected, source=source)
    return KVConfig(message.batch_num, message.activation_offset, layers)


def _params(reader: KVReader, message: Any, where: str) -> KVParams:
    """The settings of a ``CalibrationConfig``; without an algorithm IFMR's defaults."""
    chosen = message.WhichOneof("acts_quant_algo")
    if chosen is None:
        return KVParams()
    algorithm = getattr(message, chosen)
    raw: dict[str, Any] = {"quant_granularity": algorithm.quant_granularity}
    if chosen == "ifmr_quantize":
        bounds = (algorithm.search_range_start, algorithm.search_range_end)
        raw |= {key: shortest(getattr(algorithm, key)) for key in _FLOATS}
        raw |= {"act_algo": "ifmr", "search_range": [shortest(bound) for bound in bounds]}
    else:
        raw |= {"act_algo": "hfmg", "num_of_bins": algorithm.num_of_bins}
    if algorithm.HasField("asymmetric"):
        raw["asymmetric"] = algorithm.asymmetric
    found = len(reader.problems)
    params = reader.read_params("", "", raw)
    reader.problems[found:] = [
        replace(problem, key=f"{where}: {chosen}.{problem.key.lstrip('.')}")
        for problem in reader.problems[found:]
    ]
    return params
