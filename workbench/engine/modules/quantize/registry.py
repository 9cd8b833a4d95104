"""Algorithms by name: which layers they take, with which module, and what follows at deploy."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from workbench.engine.errors import WrongType
from workbench.engine.modules.quantize.attention import (
    SOURCES,
    KVCacheQuantile,
    NpuDeepseekV3AttentionQuant,
    NpuLongcatFlashMLA,
)
from workbench.engine.modules.quantize.awq import LinearAWQuant
from workbench.engine.modules.quantize.base import BaseQuantizeModule
from workbench.engine.modules.quantize.cast import HIF8CastQuant
from workbench.engine.modules.quantize.cast_deployed import NpuHIF8CastLinear
from workbench.engine.modules.quantize.conv_deployed import NpuQuantizationConv2d
from workbench.engine.modules.quantize.full import NpuQuantizationLinear
from workbench.engine.modules.quantize.gptq import GPTQuant
from workbench.engine.modules.quantize.microscaled import NpuMXQuantizationLinear
from workbench.engine.modules.quantize.minmax import MinMaxQuant, QuantileQuant
from workbench.engine.modules.quantize.ofmr import OfmrQuant
from workbench.engine.modules.quantize.smoothquant import SmoothQuant
from workbench.engine.modules.quantize.weight_only import NpuWeightQuantizedLinear


@dataclass(frozen=True)
class Registered:
    """A module that calibrates layers of one class. ``built_in``: ours, with rules of pairs."""

    quant_op: type[nn.Module]
    built_in: bool = False


_algorithms: dict[str, dict[str, Registered]] = {}
_deploy_ops: dict[type[nn.Module], list[type[nn.Module]]] = {}


def algorithm_register(
    name: str, src_op: str, quant_op: type[nn.Module], deploy_op: type[nn.Module] | None = None
) -> None:
    """Make ``name`` an algorithm for layers of class name ``src_op``.

    ``quant_op``: a subclass of ``BaseQuantizeModule`` built as ``(ori_module, layer_name,
    quant_config)``; ``quant_config`` is the layer's own dict (chapter 25 section 2).
    ``deploy_op``: an ``nn.Module`` built as ``(quant_module)``, or None: ``convert`` then leaves
    the calibration module. Another ``src_op`` of a known name adds to it; the same one replaces
    what was there. Several deploy ops of one ``quant_op`` accumulate: ``convert`` takes the one
    whose class fits what was calibrated, else the last.

    Raises ``TypeError`` for arguments of the wrong kind. Chapter 25 section 11.
    """
    for argument, value in (("name", name), ("src_op", src_op)):
        if not isinstance(value, str):
            raise WrongType(
                f"{argument} must be a string, it is {value!r}", where="algorithm_register()"
            )
    _check_class("quant_op", quant_op, BaseQuantizeModule)
    if deploy_op is not None:
        _check_class("deploy_op", deploy_op, nn.Module)
    _register(name, src_op, quant_op, () if deploy_op is None else (deploy_op,))


def known_algorithms() -> tuple[str, ...]:
    """All names."""
    return tuple(_algorithms)


def source_ops(name: str) -> dict[str, Registered]:
    """What an algorithm does, by class name of the layers it takes."""
    return dict(_algorithms[name])


def deploy_class(module: BaseQuantizeModule) -> type[nn.Module] | None:
    """What a calibrated module becomes; None when nothing was registered. Chapter 25 section 8."""
    found = _deploy_ops.get(type(module), [])
    if len(found) < 2:
        return found[0] if found else None
    if module.ori_module_type == "Conv2d":
        wanted = "NpuQuantizationConv2d"
    elif getattr(module, "inputs", None) is not None or module.scale_d is not None:
        wanted = "NpuQuantizationLinear"
    elif isinstance(module, KVCacheQuantile):
        wanted = {
            "DeepseekV3Attention": "NpuDeepseekV3AttentionQuant",
            "LongcatFlashMLA": "NpuLongcatFlashMLA",
        }.get(str(module.ori_module_type), "")
    else:
        wanted = "NpuWeightQuantizedLinear"
    return next((op for op in found if op.__name__ == wanted), found[-1])


def _check_class(argument: str, value: Any, base: type) -> None:
    if not inspect.isclass(value) or not issubclass(value, base):
        raise WrongType(
            f"{argument} must be a subclass of {base.__name__}, it is {value!r}",
            where="algorithm_register()",
        )


def _register(
    name: str,
    src_op: str,
    quant_op: type[nn.Module],
    deploy_ops: Sequence[type[nn.Module]],
    *,
    built_in: bool = False,
) -> None:
    _algorithms.setdefault(name, {})[src_op] = Registered(quant_op, built_in)
    known = _deploy_ops.setdefault(quant_op, [])
    known += [op for op in deploy_ops if op not in known]


def _register_built_in() -> None:
    both = (NpuQuantizationLinear, NpuWeightQuantizedLinear)
    linear: tuple[tuple[str, type[nn.Module], tuple[type[nn.Module], ...]], ...] = (
        ("minmax", MinMaxQuant, both),
        ("smoothquant", SmoothQuant, (NpuQuantizationLinear,)),
        ("awq", LinearAWQuant, (NpuWeightQuantizedLinear,)),
        ("gptq", GPTQuant, (NpuWeightQuantizedLinear,)),
        ("ofmr", OfmrQuant, (*both, NpuQuantizationConv2d)),
        ("quantile", QuantileQuant, both),
        ("cast", HIF8CastQuant, (NpuHIF8CastLinear,)),
        ("mxquant", NpuMXQuantizationLinear, ()),
    )
    for name, quant_op, deploy_ops in linear:
        _register(name, "Linear", quant_op, deploy_ops, built_in=True)
    _register("ofmr", "Conv2d", OfmrQuant, (), built_in=True)
    attention = (NpuDeepseekV3AttentionQuant, NpuLongcatFlashMLA)
    for source in SOURCES:
        _register("quantile", source, KVCacheQuantile, attention, built_in=True)


_register_built_in()
