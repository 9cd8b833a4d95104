"""Which layers ``quantize`` replaces, by what, and why it leaves the others."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from workbench.engine.errors import WrongValue
from workbench.engine.files.problems import Problem, raise_problems
from workbench.engine.flows.module_quantize_config import (
    WITH_OPTIONS,
    LayerConfig,
    ModuleQuantConfig,
)
from workbench.engine.flows.module_quantize_rules import (
    Target,
    combination_problems,
    dtype_obstacle,
    shape_obstacle,
)
from workbench.engine.modules.quantize import attention, fp8_linear
from workbench.engine.modules.quantize.base import BaseQuantizeModule
from workbench.engine.modules.quantize.registry import (
    Registered,
    known_algorithms,
    source_ops,
)

logger = logging.getLogger("workbench.engine.flows")

_SOURCE = "quantize() config"
_USUAL = ("Linear", "Conv2d")
_USUALLY_SKIPPED = {"lm_head"}
"""The presets skip it whether or not a model has one."""


@dataclass(frozen=True)
class PlannedLayer:
    """One layer that will be replaced, at all its places in the module tree."""

    name: str
    module: nn.Module
    algorithm: str
    config: LayerConfig
    op: Registered
    quant_config: dict[str, Any]
    notes: tuple[str, ...] = ()

    def build(self) -> nn.Module:
        """The module that takes its place; raises what the algorithm finds wrong with it."""
        build = cast(Any, self.op.quant_op)
        module = build(self.module, self.name, self.quant_config)
        module.train(self.module.training)
        return cast(nn.Module, module)


@dataclass(frozen=True)
class LeftLayer:
    """A layer that stays as it is. ``by_dtype``: its float type alone was the reason."""

    name: str
    module: nn.Module
    reason: str
    by_dtype: bool = False


@dataclass(frozen=True)
class Selection:
    """All layers of the usual kinds, in the order of ``named_modules``."""

    planned: tuple[PlannedLayer, ...]
    left: tuple[LeftLayer, ...]


def check_algorithms(config: ModuleQuantConfig) -> dict[str, tuple[str, Registered]]:
    """Algorithm and module for each class name of layers.

    Raises ``ValueError`` for unknown algorithms, two that take the same layers, and pairs of
    formats that the built-in ones cannot do. Chapter 25 section 3.
    """
    problems = [
        Problem("", "algorithm", repr(name), ", ".join(known_algorithms()))
        for name in config.algorithms
        if name not in known_algorithms()
    ]
    problems += [
        Problem("", f"algorithm.{name}", repr(options), "no options")
        for name, options in config.algorithms.items()
        if options and name not in WITH_OPTIONS and name in known_algorithms()
        if all(op.built_in for op in source_ops(name).values())
    ]
    raise_problems(problems, source=_SOURCE)
    by_source: dict[str, tuple[str, Registered]] = {}
    for name in config.algorithms:
        for source, op in source_ops(name).items():
            if source in by_source:
                other = by_source[source][0]
                problems.append(
                    Problem("", "algorithm", f"{other} and {name}", f"one that takes {source}")
                )
            by_source[source] = (name, op)
    built_in = {name for name, op in by_source.values() if op.built_in}
    if len(built_in) == len(config.algorithms):
        for name in sorted(built_in):
            problems += combination_problems(config.everywhere, name)
        cached = [pattern for pattern in config.patterns if pattern.section == "kvcache"]
        if any(pattern.value for pattern in cached) and "quantile" not in built_in:
            shown = ", ".join(sorted(built_in))
            problems.append(Problem("", "algorithm", shown, "quantile, for a key-value cache"))
    raise_problems(problems, source=_SOURCE)
    return by_source


def select(
    model: nn.Module,
    config: ModuleQuantConfig,
    *,
    target: Target = "portable",
    any_dtype: bool = False,
    compat: bool = False,
) -> Selection:
    """Choose the layers of ``model``, which is not changed.

    Raises ``ValueError`` for what ``check_algorithms`` refuses, for a per-layer pattern that makes
    an illegal pair, and when ``model`` itself would have to be replaced.
    """
    by_source = check_algorithms(config)
    if type(model).__name__ in by_source:
        raise WrongValue(
            f"the model itself is a {type(model).__name__}, which cannot be replaced in place",
            where="quantize()",
            hint="Wrap it, for example in torch.nn.Sequential.",
        )
    planned: list[PlannedLayer] = []
    left: list[LeftLayer] = []
    problems: list[Problem] = []
    unused = {pattern.glob for pattern in config.patterns}
    idle = set(config.skip_layers)
    for names, module in places(model):
        name, kind = names[0], type(module).__name__
        unused -= {p.glob for p in config.patterns if any(p.matches(n) for n in names)}
        idle -= {entry for entry in idle if any(entry in n for n in names)}
        skipped = next((entry for n in names if (entry := config.skips(n))), None)
        if kind == fp8_linear.SOURCE and skipped is None:
            logger.warning("layer %s (%s) is left for convert(), which turns it over", name, kind)
            left.append(LeftLayer(name, module, "converted directly by convert()"))
            continue
        if kind not in by_source and kind != fp8_linear.SOURCE:
            if kind in _USUAL:
                algorithms = ", ".join(config.algorithms)
                left.append(LeftLayer(name, module, f"{algorithms} does not take {kind}"))
            continue
        if skipped is not None:
            if skipped in names and any(p.matches(n) for p in config.patterns for n in names):
                logger.warning("layer %s matches a pattern and skip_layers: it is skipped", name)
            left.append(LeftLayer(name, module, f"skip_layers has {skipped!r}"))
            continue
        algorithm, op = by_source[kind]
        layer = _plan(names, module, algorithm, op, config, compat)
        reason, by_dtype = _obstacle(layer, target, any_dtype, problems)
        if reason is None:
            planned.append(layer)
        else:
            left.append(LeftLayer(name, module, reason, by_dtype))
    raise_problems(problems, source=_SOURCE)
    for glob in sorted(unused):
        logger.warning("the pattern %r of quant_cfg matches no layer", glob)
    for entry in sorted(idle - _USUALLY_SKIPPED):
        logger.warning("the entry %r of skip_layers is part of no layer's name", entry)
    return Selection(tuple(planned), tuple(left))


def places(model: nn.Module) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    """Every module with all its names, once; those inside of a calibration module are left out.

    What lies in an attention with a quantised cache keeps the name it had in the attention.
    """
    names: dict[nn.Module, list[str]] = {}
    inside: list[str] = []
    wrapped: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if path in wrapped or path.startswith(tuple(inside)):
            continue
        name = path
        for inner, outer in wrapped.items():
            if path.startswith(f"{inner}."):
                name = f"{outer}{path.removeprefix(inner)}"
        if isinstance(module, attention.KVCacheQuantile | attention.AttentionDeploy):
            wrapped[f"{path}.attention"] = name
        elif isinstance(module, BaseQuantizeModule):
            inside.append(f"{path}.")
        names.setdefault(module, []).append(name)
    for module, found in names.items():
        yield tuple(found), module


def replace_everywhere(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` at every place of ``old`` in the module tree."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def _plan(
    names: tuple[str, ...],
    module: nn.Module,
    algorithm: str,
    op: Registered,
    config: ModuleQuantConfig,
    compat: bool,
) -> PlannedLayer:
    layer = config.of_layer(names[0])
    if op.built_in:
        # An attention has no weight of its own, a Linear no cache.
        cached = type(module).__name__ in attention.SOURCES
        layer = (
            replace(layer, weights=None, inputs=None) if cached else replace(layer, kvcache=None)
        )
    options = config.algorithms[algorithm]
    # Built-in algorithms without options see none; one of a user sees what was given for it.
    given: Mapping[str, Any] = {} if op.built_in and not options else {algorithm: options}
    quant_config = layer.as_dict(config.batch_num, given)
    if compat and op.built_in:
        quant_config["compat"] = True
    return PlannedLayer(names[0], module, algorithm, layer, op, quant_config)


def _obstacle(
    layer: PlannedLayer, target: Target, any_dtype: bool, problems: list[Problem]
) -> tuple[str | None, bool]:
    """Why the layer stays float, and whether its dtype is why; illegal pairs go to ``problems``."""
    config = layer.config
    if config.weights is None and config.kvcache is None:
        return "no entry of quant_cfg is for it", False
    if not layer.op.built_in:
        return None, False
    found = combination_problems(config, layer.algorithm, layer.name)
    problems += found
    weight = getattr(layer.module, "weight", None)
    if found or config.weights is None or not isinstance(weight, torch.Tensor):
        return None, False
    reason = shape_obstacle(layer.module, weight, config, target)
    if reason is not None:
        return reason, False
    return dtype_obstacle(weight, config, any_dtype), True
