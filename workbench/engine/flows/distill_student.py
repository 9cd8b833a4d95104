"""The student of a distillation: a copy of the model with quantised layers in it.

Source: specification chapter 50 section 7, D14 and D20.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from workbench.engine.errors import WrongState
from workbench.engine.files.distill_config import DistillConfig, DistillLayer
from workbench.engine.files.distill_rules import ANCHOR_TYPES
from workbench.engine.flows.qat_insert import replace_modules
from workbench.engine.graph.capture import Captured
from workbench.engine.graph.copying import copy_for_training
from workbench.engine.graph.folding import plan_folding
from workbench.engine.graph.layers import LayerInfo
from workbench.engine.graph.non_negative import non_negative_input
from workbench.engine.modules.qat.convolutions import Conv2dQAT
from workbench.engine.modules.qat.linear import LinearQAT
from workbench.engine.modules.qat.operator_config import OperatorConfig
from workbench.engine.modules.qat.quantisers import ActivationSettings, QuantisingModule

STUDENT_TYPES = (Conv2dQAT, LinearQAT)
_BITS = {"INT8": 8, "INT4": 4}


def refuse_quantised(function: str, model: nn.Module) -> None:
    """Raise ``WrongState`` for a model that already holds quantisation modules, listing them."""
    found = {
        name or "the model itself": type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, QuantisingModule) or getattr(module, "workbench_wrapper", False)
    }
    if found:
        listed = ", ".join(f"{name} → {kind}" for name, kind in found.items())
        raise WrongState(
            f"the model already contains quantisation modules: {listed}",
            where=f"{function}()",
            hint="Give the original float model.",
        )


def student_layers(model: nn.Module) -> dict[str, Conv2dQAT | LinearQAT]:
    """The quantised layers of a student by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, STUDENT_TYPES) and module.enabled
    }


def module_types(model: nn.Module) -> dict[str, str]:
    """The class name of every module by its path."""
    return {name: type(module).__name__ for name, module in model.named_modules()}


@dataclass(frozen=True)
class ModuleFacts:
    """What is known of a layer without a graph: its class and its padding (section 2)."""

    name: str
    type: str
    reason: str
    groups: int
    in_channels: int
    out_channels: int
    has_bias: bool
    has_weight: bool = True

    @property
    def eligible(self) -> bool:
        return not self.reason


def facts_of_modules(model: nn.Module) -> dict[str, ModuleFacts]:
    """Convolutions and linear layers of a model that is not captured."""
    found = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind not in ANCHOR_TYPES or not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        conv = module if isinstance(module, nn.Conv2d) else None
        mode = conv.padding_mode if conv is not None else "zeros"
        reason = "" if mode == "zeros" else f"padding_mode '{mode}' is not supported"
        found[name] = ModuleFacts(
            name,
            kind,
            reason,
            conv.groups if conv is not None else 1,
            conv.in_channels if conv is not None else module.weight.shape[1],
            module.weight.shape[0],
            module.bias is not None,
        )
    return found


def layers_in_module_order(captured: Captured) -> dict[str, LayerInfo]:
    """The layers in ``named_modules()`` order, that of the configuration."""
    return {
        name: captured.layers[name]
        for name, _ in captured.module.named_modules()
        if name in captured.layers
    }


def make_student(
    model: nn.Module, captured: Captured, config: DistillConfig, *, compat: bool = False
) -> nn.Module:
    """A copy of ``model`` with every enabled layer quantised under its own name.

    The copy's layers keep their parameters, device and mode. Where a batch norm turns a channel
    over, both it and the convolution before it are turned, which changes no output: folding them
    then leaves the codes of the weight as they are. Raises ``WrongState`` for a model that cannot
    be copied.
    """
    student = copy_for_training(model)
    if not compat:
        for pair in plan_folding(captured, sync=True).pairs:
            if pair.conv in config.enabled():
                _turn_positive(student.get_submodule(pair.conv), student.get_submodule(pair.bn))
    made: dict[int, nn.Module] = {}
    for name in config.enabled():
        layer = config.layers[name]
        fixed = layer.activation.fixed_min
        if fixed is None and not compat:
            fixed = non_negative_input(captured, name)
        operator = _operator_config(layer, config.batch_num, fixed is True, compat)
        float_layer = student.get_submodule(name)
        made[id(float_layer)] = _quantised(name, float_layer, operator)
    replace_modules(student, made)
    return student


def make_float(student: nn.Module) -> nn.Module:
    """A copy of a student with plain layers in it, their float weights as they are now."""
    plain = copy_for_training(student)
    made = {id(layer): _plain_layer(layer) for layer in student_layers(plain).values()}
    replace_modules(plain, made)
    return plain


def _plain_layer(layer: Conv2dQAT | LinearQAT) -> nn.Module:
    has_bias = layer.bias is not None
    made: nn.Module
    if isinstance(layer, Conv2dQAT):
        made = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            has_bias,
            device="meta",
        )
    else:
        made = nn.Linear(layer.in_features, layer.out_features, has_bias, device="meta")
    made.register_parameter("weight", layer.get_parameter("weight"))
    if has_bias:
        made.register_parameter("bias", layer.get_parameter("bias"))
    return made.train(layer.training)


def _quantised(name: str, layer: nn.Module, config: OperatorConfig) -> nn.Module:
    kind = Conv2dQAT if isinstance(layer, nn.Conv2d) else LinearQAT
    operator = kind.from_float(layer, config)
    operator.layer_name = name
    return operator


@torch.no_grad()
def _turn_positive(conv: nn.Module, norm: nn.Module) -> None:
    """Make every factor of a batch norm positive: turned twice, its input and its mean."""
    sign = torch.where(norm.get_parameter("weight") < 0, -1.0, 1.0)
    for tensor in conv.parameters(recurse=False):
        tensor.mul_(sign.to(tensor.dtype).reshape(-1, *[1] * (tensor.dim() - 1)))
    norm.get_parameter("weight").mul_(sign)
    norm.get_buffer("running_mean").mul_(sign)


def _operator_config(
    layer: DistillLayer, batch_num: int, fixed_min: bool, compat: bool
) -> OperatorConfig:
    activation, weight = layer.activation, layer.weight
    return OperatorConfig(
        enabled=True,
        data=ActivationSettings(
            bits=_BITS[activation.dst_type],
            batch_num=batch_num,
            fixed_min=fixed_min,
            clip_max=activation.clip_max,
            clip_min=activation.clip_min,
            quantise_first=False,
            deploy_state=True,
        ),
        # The reference stores the choice and runs ARQ all the same (D2).
        trained_scales=weight.algo == "ulq_distill" and not compat,
        channel_wise=weight.channel_wise,
        weight_bits=_BITS[weight.dst_type],
    )
