"""The network of one trial: some layers on integer codes, the others in float.

Source: specification chapter 20 section 4.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir
from torch import Tensor, nn

from workbench.engine.errors import WrongState
from workbench.engine.export.fake_quant import expand_fake_quant
from workbench.engine.export.float_onnx import to_onnx
from workbench.engine.export.insert import insert_quantization
from workbench.engine.export.plan import QuantizedNode, plan_layers
from workbench.engine.export.qdq import build_qdq, qdq_obstacle
from workbench.engine.export.torch_module import to_fake_quant
from workbench.engine.files.config import QuantConfig
from workbench.engine.files.record import Record, format_record
from workbench.engine.files.sidecar import Sidecar
from workbench.engine.flows.calibration import Calibration
from workbench.engine.flows.folding import fold_plan, folded_copy
from workbench.engine.flows.ptq import mark_data_types
from workbench.engine.flows.weights import balanced_weight
from workbench.engine.graph.capture import Captured
from workbench.engine.search.identity import digest_of

TUNED = ("ada_quantize",)
"""Weight algorithms whose codes are not the weight divided by the scale and rounded."""


@dataclass(frozen=True)
class Factors:
    """What trials are built from: the folded float model, a record, and tuned weights.

    ``tuned`` holds the fake-quantised weights of layers whose rounding was optimised. It can be
    pickled, for workers.
    """

    folded: nn.Module
    record: Record
    tuned: Mapping[str, Tensor] = field(default_factory=dict)

    def quantized(self, names: Collection[str]) -> nn.Module:
        """A module in which exactly these layers are fake-quantised."""
        return to_fake_quant(self.folded, self.record, names, weights=self.tuned)

    def selected(self, names: Collection[str]) -> Factors:
        """The factors of the layers that these entries of the record stand for."""
        wanted = set(names)
        layers = {name: r for name, r in self.record.layers.items() if name in wanted}
        tuned = {name: weight for name, weight in self.tuned.items() if name in layers}
        return Factors(self.folded, Record(layers), tuned)

    def digest(self) -> str:
        return digest_of(format_record(self.record), dict(self.tuned))


def is_tuned(config: QuantConfig) -> bool:
    """Whether some layer's codes follow from more than its weight and the record."""
    weights = (config.layers[name].weight for name in config.enabled())
    return any(weight is not None and weight.wts_algo in TUNED for weight in weights)


def from_calibration(calibration: Calibration) -> Factors:
    return Factors(calibration.folded, calibration.finalize(), calibration.tuned_weights)


def from_record(captured: Captured, config: QuantConfig, record: Record) -> Factors:
    """Factors without a calibration, for a configuration that is not tuned."""
    return Factors(folded_copy(captured, fold_plan(captured, config)), record)


def fake_quant_onnx(
    captured: Captured, config: QuantConfig, factors: Factors, names: Collection[str]
) -> bytes:
    """The fake-quant file of the same network, for models under 2 GB."""
    model, nodes = _planned(captured, config, factors.selected(names))
    if nodes:
        insert_quantization(model, nodes)
        expand_fake_quant(model)
    data: bytes = ir.to_proto(model).SerializeToString()
    return data


def qdq_onnx(captured: Captured, config: QuantConfig, factors: Factors, sidecar: Sidecar) -> bytes:
    """The QDQ file, for models under 2 GB. ``factors``: of exactly the layers to quantise.

    Errors: ``RuntimeError`` when there is no such file of this network.
    """
    model, nodes = _planned(captured, config, factors)
    if nodes:
        obstacle = qdq_obstacle(model, nodes)
        if obstacle:
            raise WrongState(
                f"there is no QDQ file of this configuration: {obstacle}", where="objective latency"
            )
        model = build_qdq(model, nodes, sidecar)
    data: bytes = ir.to_proto(model).SerializeToString()
    return data


def _planned(
    captured: Captured, config: QuantConfig, factors: Factors
) -> tuple[ir.Model, list[QuantizedNode]]:
    """The folded float file, balanced and tuned weights in place, and the nodes to quantise."""
    balanced: dict[str, Tensor] = {}
    layers = factors.record.layers
    for name, record in layers.items():
        if record.tensor_balance_factor:
            weight = factors.folded.get_submodule(name).get_parameter("weight").detach()
            scaled = balanced_weight(weight, captured.layers[name], record.tensor_balance_factor)
            balanced[name] = scaled.to(weight.dtype)
    weights = {**balanced, **factors.tuned}
    model = to_onnx(captured, fold_plan(captured, config), weights=weights)
    if not layers:
        return model, []
    mark_data_types(model, layers)
    return model, plan_layers(model, factors.record, source="search")
