"""Layers of a model that goes through ``quantize``, each alone in every number format."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.engine.algorithms.weight_formats import WeightFormat
from workbench.engine.analysis.module_layers import ChannelProfile
from workbench.engine.errors import WrongState
from workbench.engine.events import CancelToken, OnEvent, Progress, check, emit
from workbench.engine.flows.block_calibration import model_arguments
from workbench.engine.flows.module_quantize_config import LayerConfig
from workbench.engine.flows.module_quantize_rules import PAIRS, shape_obstacle
from workbench.engine.flows.module_quantize_selection import places
from workbench.engine.modules.quantize.base import CalibrationModule, named
from workbench.engine.modules.quantize.minmax import MinMaxQuant
from workbench.engine.modules.quantize.registry import source_ops
from workbench.engine.modules.quantize.smoothquant import SmoothQuant

KINDS = ("Linear", "Conv2d")
SMOOTH_STRENGTH = 0.5
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "smoothquant": {"smooth_strength": SMOOTH_STRENGTH},
    "awq": {"grids_num": 20},
}
"""Of the algorithms that need some: those of the presets."""


@dataclass(frozen=True)
class Way:
    """A legal way to quantise a layer: sections of ``quant_cfg`` and the algorithm."""

    weights: Mapping[str, Any]
    inputs: Mapping[str, Any] | None
    algorithm: str

    @property
    def layer_config(self) -> LayerConfig:
        return LayerConfig(self.weights, self.inputs, None)

    @property
    def options(self) -> dict[str, Any]:
        """The algorithm's entry of the configuration."""
        return {self.algorithm: dict(_OPTIONS.get(self.algorithm, {}))}

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Float types of weights that it was made for."""
        return PAIRS[self.layer_config.pair[0], str(self.weights["type"])].dtypes

    def takes(self, kind: str) -> bool:
        """Whether layers of the class ``kind`` can go this way."""
        return kind in source_ops(self.algorithm)


def _weights(type_: str, group: int | None = None) -> dict[str, Any]:
    section = {"type": type_, "symmetric": True, "strategy": "channel"}
    return section if group is None else {**section, "strategy": "group", "group_size": group}


def _inputs(type_: str, strategy: str = "tensor") -> dict[str, Any]:
    return {"type": type_, "symmetric": True, "strategy": strategy}


WEIGHTS: Mapping[str, Mapping[str, Any]] = {
    "int8": _weights("int8"),
    "int4": _weights("int4"),
    "int4 g32": _weights("int4", 32),
    "int4 g64": _weights("int4", 64),
    "float8": _weights("float8_e4m3fn"),
    "hifloat8": _weights("hifloat8"),
    "mxfp8": _weights("mxfp8_e4m3fn", 32),
    "mxfp4": _weights("mxfp4_e2m1", 32),
    "float4": _weights("float4_e2m1", 32),
}
"""Formats of weights by short name: per output channel, g32: per group of 32 inputs."""

_INPUTS: Mapping[str, Mapping[str, Any]] = {
    "int8": _inputs("int8"),
    "float8": _inputs("float8_e4m3fn"),
    "hifloat8": _inputs("hifloat8"),
    "mxfp8": _inputs("mxfp8_e4m3fn", "group"),
}


def _ways() -> dict[str, Way]:
    found = {}
    for inputs in (None, *_INPUTS):
        for weights, section in WEIGHTS.items():
            given = None if inputs is None else _INPUTS[inputs]
            pair = PAIRS.get((None if given is None else given["type"], section["type"]))
            # int8 inputs above int4 weights take float16 alone: no cast would suit all ways.
            if pair is None or (given is not None and section["type"] == "int4"):
                continue
            if section["strategy"] not in pair.weights:
                continue
            formats = weights if inputs is None else f"{inputs}/{weights}"
            for algorithm in pair.algorithms:
                found[f"{formats} · {algorithm}"] = Way(section, given, algorithm)
    return found


WAYS: Mapping[str, Way] = _ways()
"""Legal ways by name: "int4 g32 · gptq" (weights alone), "int8/int8 · smoothquant"."""


@dataclass(frozen=True)
class LayerFormats:
    """One layer alone in every format.

    ``errors``: by name in ``WEIGHTS``, the Frobenius norm of the weight's error ÷ that of the
    weight; NaN where the format does not take the layer. ``minmax_db``, ``smoothquant_db``: signal
    to noise of the layer's output with int8 inputs and weights; NaN where not measured.
    ``profile``: input channels with the factors of smoothquant; None for layers that are not
    Linear and those that no batch reached.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    errors: Mapping[str, float]
    minmax_db: float = math.nan
    smoothquant_db: float = math.nan
    profile: ChannelProfile | None = None


@torch.no_grad()
def compare_formats(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    formats: Sequence[str] = tuple(WEIGHTS),
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> tuple[LayerFormats, ...]:
    """Measure every Linear and Conv2d layer of a float ``model``, which is only read.

    ``batches`` as for ``calibrate_by_block``; they go through the model twice: for the ranges of
    the inputs, and for the output error of each Linear layer with exact inputs. In memory are a few
    numbers a channel. ``formats``: names in ``WEIGHTS``.

    Errors: ``RuntimeError`` when there is no such layer, and naming the layer when a weight or an
    input holds inf or NaN.
    """
    layers = {
        names[0]: module
        for names, module in places(model)
        if names[0] and type(module).__name__ in KINDS
        if isinstance(getattr(module, "weight", None), Tensor)
    }
    if not layers:
        raise WrongState(
            "the model has no Linear or Conv2d layer",
            where="compare_formats()",
            hint="Formats are chosen for layers of these classes.",
        )
    errors: dict[str, dict[str, float]] = {}
    for name, layer in layers.items():
        check(cancel)
        errors[name] = _weight_errors(name, layer, formats)
        emit(on_event, Progress("weights", len(errors), len(layers)))
    found = {n: _Int8(n, m) for n, m in layers.items() if isinstance(m, nn.Linear)}
    inputs = [model_arguments(batch) for batch in batches]
    for step in ("ranges", "outputs"):
        if step == "outputs":
            for pair in found.values():
                pair.finish()
        hooks = [
            layers[name].register_forward_hook(
                pair.observe if step == "ranges" else pair.compare, with_kwargs=True
            )
            for name, pair in found.items()
        ]
        try:
            for done, (args, kwargs) in enumerate(inputs, 1):
                check(cancel)
                model(*args, **kwargs)
                emit(on_event, Progress(step, done, len(inputs)))
        finally:
            for hook in hooks:
                hook.remove()
    return tuple(
        _summary(name, layer, errors[name], found.get(name)) for name, layer in layers.items()
    )


def _weight_errors(name: str, layer: nn.Module, formats: Sequence[str]) -> dict[str, float]:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    exact = weight.detach().float()
    norm = exact.norm().clamp_min(1e-30)
    errors = {}
    for key in formats:
        section = WEIGHTS[key]
        taken = any(w.weights == section and w.takes(type(layer).__name__) for w in WAYS.values())
        config = LayerConfig(section, None, None)
        if not taken or shape_obstacle(layer, weight, config, "portable"):
            errors[key] = math.nan
            continue
        format_ = WeightFormat(
            section["type"], section["symmetric"], section["strategy"], section.get("group_size")
        )
        with named(name):
            factors = format_.factors(exact)
            errors[key] = float((format_.fake_quantize(exact, factors) - exact).norm() / norm)
    return errors


class _Int8:
    """One Linear layer with int8 inputs and weights, by minmax and by smoothquant."""

    def __init__(self, name: str, layer: nn.Linear) -> None:
        self.name = name
        self.layer = layer
        self.signal = 0.0
        self.noise = [0.0, 0.0]
        self.ways: list[CalibrationModule] = []
        if layer.weight.numel():
            for way in (WAYS["int8/int8 · minmax"], WAYS["int8/int8 · smoothquant"]):
                build: Callable[..., CalibrationModule] = (
                    MinMaxQuant if way.algorithm == "minmax" else SmoothQuant
                )
                self.ways.append(build(layer, name, way.layer_config.as_dict(1, way.options)))

    @property
    def smooth(self) -> SmoothQuant:
        module = self.ways[1]
        assert isinstance(module, SmoothQuant)
        return module

    @property
    def seen(self) -> bool:
        return bool(self.ways) and self.smooth.statistics()["ranges"].tokens > 0

    def observe(self, _module: nn.Module, args: Any, kwargs: Any, _output: Tensor) -> None:
        for way in self.ways:
            with named(self.name):
                way.observe(args[0] if args else kwargs["input"])

    def finish(self) -> None:
        if self.seen:
            for way in self.ways:
                with named(self.name):
                    way.finish()

    def compare(self, _module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        if not self.seen:
            return
        x = args[0] if args else kwargs["input"]
        exact = output.double()
        self.signal += float(exact.square().sum())
        for place, way in enumerate(self.ways):
            self.noise[place] += float((way.fake_forward(x).double() - exact).square().sum())

    def decibel(self, place: int) -> float:
        """Signal to noise; NaN when no batch came by."""
        if not self.seen or not self.signal:
            return math.nan
        noise = self.noise[place]
        return 10 * math.log10(self.signal / noise) if noise else math.inf

    def profile(self) -> ChannelProfile | None:
        if not self.seen:
            return None
        factors = self.smooth.scale
        assert factors is not None
        ranges = self.smooth.statistics()["ranges"]
        return ChannelProfile(
            self.name,
            _array(ranges.magnitude),
            _array(self.layer.weight.float().abs().amax(0)),
            _array(factors.reshape(-1)),
        )


def _summary(
    name: str, layer: nn.Module, errors: Mapping[str, float], pair: _Int8 | None
) -> LayerFormats:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    dtype = str(weight.dtype).removeprefix("torch.")
    facts = LayerFormats(name, type(layer).__name__, tuple(weight.shape), dtype, errors)
    if pair is None:
        return facts
    return replace(
        facts,
        minmax_db=pair.decibel(0),
        smoothquant_db=pair.decibel(1),
        profile=pair.profile(),
    )


def _array(values: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return values.detach().cpu().double().numpy()
