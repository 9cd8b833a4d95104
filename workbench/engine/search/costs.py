"""What a configuration costs: bytes, bit-operations or milliseconds (decision 17)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from workbench.engine.analysis.cost import model_cost
from workbench.engine.export.segments import session
from workbench.engine.export.timing import time_in_turn
from workbench.engine.files.sidecar import Sidecar
from workbench.engine.search.identity import digest_of
from workbench.engine.search.judging import Choice
from workbench.engine.search.models import Factors, qdq_onnx
from workbench.engine.search.setup import SearchSetup
from workbench.engine.search.variants import VariantFactors, with_choices

OBJECTIVES = {"size": "bytes", "bops": "bit-operations of one sample", "latency": "ms"}
"""What ``objective`` may be, and its unit."""

Options = Mapping[str, Sequence[Choice]]
"""What each layer may be, in the order of the search."""


@dataclass(frozen=True)
class CostTable:
    """Cost = ``constant`` + the sum of one number a layer and choice."""

    constant: float
    parts: Mapping[str, Mapping[Choice, float]]

    def cost(self, choices: Mapping[str, Choice]) -> float:
        return self.constant + sum(self.parts[name][c] for name, c in choices.items())


def cost_table(setup: SearchSetup, options: Options, objective: str) -> CostTable:
    """Size in bytes or bit-operations; layers that are not searched count as they stay: float."""
    size = objective == "size"
    layers = setup.captured.layers

    def cost(name: str, choice: Choice) -> float:
        config = with_choices(setup.config, layers, {name: choice})
        one = model_cost({name: layers[name]}, config, 0)
        return float(one.size_bytes if size else one.bit_operations)

    parts = {name: {c: cost(name, c) for c in choices} for name, choices in options.items()}
    if size:
        parameters = setup.model.parameters()
        constant = float(sum(p.numel() * p.element_size() for p in parameters))
    else:
        others = {name: info for name, info in layers.items() if name not in options}
        constant = float(model_cost(others, None, 0).bit_operations)
    return CostTable(constant, parts)


class Meter(Protocol):
    """Milliseconds of one batch of the captured example under a configuration."""

    def milliseconds(self, choices: Mapping[str, Choice]) -> float: ...


class QdqMeter:
    """Median time of a configuration's QDQ file in ONNX Runtime, kept in the search's cache.

    The float file runs in turn with each: a configuration's time is its share of the float file's,
    in milliseconds of the first measurement, so that a machine that gets slower does not matter.
    """

    def __init__(
        self, setup: SearchSetup, factors: VariantFactors, sidecar: Sidecar, base: str
    ) -> None:
        self._setup, self._factors, self._sidecar = setup, factors, sidecar
        self._threads = torch.get_num_threads()
        digests = (factors.digest(), _inputs(setup))
        self._key = digest_of(base, setup.config.digest(), self._threads, *digests)
        self._float: Any = None

    def milliseconds(self, choices: Mapping[str, Choice]) -> float:
        cache = self._setup.cache
        cut = self._factors.key(choices)
        key = digest_of(self._key, sorted(cut))
        known = cache.get("latency", key)
        if known is None:
            names = [entry for entry in self._factors.entries if entry not in cut]
            share, baseline = self._measure(self._factors.selected(names))
            first = cache.get("latency", self._key)
            if first is None:
                first = {"milliseconds": baseline}
                cache.put("latency", self._key, first)
            known = {"milliseconds": share * float(first["milliseconds"])}
            cache.put("latency", key, known)
        return float(known["milliseconds"])

    def _measure(self, factors: Factors) -> tuple[float, float]:
        """Share of the float file's time, and that."""
        runs = {"file": self._run(factors)}
        if self._float is None:
            self._float = self._run(replace(factors, record=replace(factors.record, layers={})))
        runs["float"] = self._float
        found = time_in_turn(runs, cancel=self._setup.cancel)
        return found["file"][0] / found["float"][0], found["float"][0]

    def _run(self, factors: Factors) -> Any:
        setup = self._setup
        data = qdq_onnx(setup.captured, setup.config, factors, self._sidecar)
        runtime = session(data, threads=self._threads)
        inputs = [value.name for value in runtime.get_inputs()]
        feed = dict(zip(inputs, (x.numpy() for x in _inputs(setup)), strict=True))
        return lambda: runtime.run(None, feed)


def _inputs(setup: SearchSetup) -> list[Tensor]:
    leaves = pytree.tree_leaves((setup.captured.args, setup.captured.kwargs))
    return [x.detach().cpu() for x in leaves if isinstance(x, Tensor)]


def latency_table(setup: SearchSetup, options: Options, meter: Meter) -> CostTable:
    """Expected milliseconds, from a few uniform configurations that are measured.

    Each choice of a layer gets the layer's share of the multiplications times what the choice
    saves when all layers that allow it make it, beside the float file.
    """
    floats = {name: Choice(False) for name in options}
    float_time = meter.milliseconds(floats)
    macs = {name: max(1, setup.captured.layers[name].macs) for name in options}
    saved: dict[Choice, float] = {Choice(False): 0.0}
    for choice in dict.fromkeys(c for choices in options.values() for c in choices):
        if choice.quantize:
            able = {n: choice for n, allowed in options.items() if choice in allowed}
            those = {**floats, **able}
            changed = sum(macs[n] for n in able)
            saved[choice] = (meter.milliseconds(those) - float_time) / changed
    parts = {name: {c: macs[name] * saved[c] for c in allowed} for name, allowed in options.items()}
    return CostTable(float_time, parts)
