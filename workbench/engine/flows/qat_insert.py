"""Put quantisers around the layers of a model that is going to be trained.

Source: specification chapter 30 sections 2.2 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from workbench.engine.files.retrain_config import RetrainConfig
from workbench.engine.flows.qat_layers import Treatment
from workbench.engine.flows.qat_state import wrappers
from workbench.engine.graph.layers import LayerInfo
from workbench.engine.modules.qat.comp_module import CompModule
from workbench.engine.modules.qat.operator_config import OperatorConfig
from workbench.engine.modules.qat.quantisers import ActivationSettings, WeightSettings
from workbench.engine.modules.qat.retrain_quant import RetrainQuant
from workbench.engine.modules.qat.rnn_retrain_quant import RNNRetrainQuant
from workbench.engine.modules.sparsity.sparse_comp_module import SparseCompModule
from workbench.engine.modules.sparsity.sparse_module import SparseModule


def insert_quantisers(
    model: nn.Module,
    config: RetrainConfig,
    layers: Mapping[str, LayerInfo],
    treatments: Mapping[str, Treatment],
) -> None:
    """Wrap every treated layer of ``model``, in place, whatever names it is reached by.

    The original modules go on being used; a batch norm that is absorbed leaves an ``Identity``.
    """
    modules = dict(model.named_modules())
    made: dict[str, CompModule] = {}
    replaced: dict[int, nn.Module] = {}
    for name, treatment in treatments.items():
        layer = modules[name]
        if isinstance(layer, nn.LSTM | nn.GRU):
            replaced[id(layer)] = RNNRetrainQuant(
                layer, name, _operator_config(config, name, treatment)
            )
            continue
        made[name] = _comp_module(layer, config, layers[name], treatment)
        if treatment.owner != name:
            made[name].share(made[treatment.owner])
        made[name].leads = treatment.leads
        norm = modules[treatment.norm] if treatment.norm else None
        replaced[id(layer)] = RetrainQuant(made[name], norm)
        if norm is not None:
            identity = nn.Identity()
            identity.training = norm.training
            replaced[id(norm)] = identity
    replace_modules(model, replaced)


def remove_quantisers(model: nn.Module, treatments: Mapping[str, Treatment]) -> None:
    """The inverse of ``insert_quantisers``: the original layers and batch norms in their places."""
    modules = dict(model.named_modules())
    replaced: dict[int, nn.Module] = {}
    for name, wrapper in wrappers(model).items():
        replaced[id(wrapper)] = wrapper.original
        if wrapper.bn_module is not None:
            replaced[id(modules[treatments[name].norm])] = wrapper.bn_module
    replace_modules(model, replaced)


def _comp_module(
    layer: nn.Module, config: RetrainConfig, info: LayerInfo, treatment: Treatment
) -> CompModule:
    settings = config.layers[info.name]
    transposed = info.type.startswith("ConvTranspose")
    activation = _activation(config, info.name, treatment)
    weight = WeightSettings(
        bits=settings.weight.bits,
        trained_scales=settings.weight.algo == "ulq_retrain",
        channel_axis=int(transposed) if settings.weight.channel_wise else None,
        groups=info.groups if transposed else 1,
    )
    if isinstance(layer, SparseModule):
        return SparseCompModule(layer, info.name, activation, weight)
    return CompModule(layer, info.name, activation, weight)


def _operator_config(config: RetrainConfig, name: str, treatment: Treatment) -> OperatorConfig:
    settings = config.layers[name].weight
    return OperatorConfig(
        enabled=True,
        data=_activation(config, name, treatment),
        trained_scales=settings.algo == "ulq_retrain",
        channel_wise=settings.channel_wise,
    )


def _activation(config: RetrainConfig, name: str, treatment: Treatment) -> ActivationSettings:
    settings = config.layers[name].data
    return ActivationSettings(
        bits=settings.bits,
        batch_num=config.batch_num,
        fixed_min=treatment.fixed_min,
        clip_max=settings.clip_max,
        clip_min=settings.clip_min,
    )


def replace_modules(model: nn.Module, replaced: Mapping[int, nn.Module]) -> None:
    """Put other modules in the places of those with these ids, whatever names they have."""
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if child is not None and id(child) in replaced:
                setattr(module, name, replaced[id(child)])
