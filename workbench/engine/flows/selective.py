"""2:4 sparsity of a model's layers: put around them, written to a record, folded away.

Source: specification chapter 40 section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from workbench.engine.errors import WrongState
from workbench.engine.files.prune_config import SelectivePrune
from workbench.engine.files.record import PruneRecord
from workbench.engine.files.selective_record import read_selective, selective_entry
from workbench.engine.modules.sparsity.masked import MaskedWeight
from workbench.engine.modules.sparsity.sparse_module import SparseModule


def wrap_selective(
    model: nn.Module,
    settings: Mapping[str, SelectivePrune],
    masks: Mapping[str, Tensor | None] | None = None,
) -> None:
    """Give the named layers 2:4 sparsity, in place, under every name they are reached by.

    Their masks are those of their weights now, or ``masks`` where there is one.
    """
    modules = dict(model.named_modules())
    made = {
        modules[name]: SparseModule(modules[name], chosen.update_freq, (masks or {}).get(name))
        for name, chosen in settings.items()
    }
    _replace(model, made)


def recorded_masks(
    records: Iterable[PruneRecord],
    model: nn.Module,
    settings: Mapping[str, SelectivePrune],
    *,
    source: str,
) -> dict[str, Tensor | None]:
    """The masks that a record holds for these layers; None where the reference has not chosen yet.

    Raises ``RuntimeError`` with everything that does not fit: a layer without an entry, an entry of
    a layer that the configuration leaves dense, and a shape that is not the weight's.
    """
    found = read_selective(records, source=source)
    modules = dict(model.named_modules())
    problems = [f"it has no 2:4 entry for layer {name}" for name in settings if name not in found]
    for name, (shape, _) in found.items():
        if name not in settings:
            problems.append(f"it has a 2:4 entry for layer {name}, which the config leaves dense")
        elif shape != (wanted := tuple(modules[name].weight.shape)):
            problems.append(f"mask_shape of layer {name} is {shape}, its weight's {wanted}")
    if problems:
        raise WrongState(
            "; ".join(problems),
            where=source,
            hint="Give the model and the config that the record was written for.",
        )
    return {name: mask for name, (_, mask) in found.items()}


def masked_layers(model: nn.Module) -> dict[str, MaskedWeight]:
    """The layers with 2:4 sparsity, by the path of what stands in their place in the model."""
    return {
        name.removesuffix(".quant_module"): module
        for name, module in model.named_modules()
        if isinstance(module, MaskedWeight)
    }


def selective_entries(model: nn.Module) -> tuple[PruneRecord, ...]:
    """The record's entries of the masks as they are now."""
    return tuple(
        selective_entry(name, layer.wts_mask) for name, layer in masked_layers(model).items()
    )


def fold_selective(model: nn.Module) -> None:
    """Put zeros into the weights and the layers back into their places, in place.

    Weights are replaced, not written: a copy may share them with the model in training.
    """
    layers = [m for m in model.modules() if isinstance(m, MaskedWeight)]
    for layer in layers:
        layer.fold_mask()
    _replace(model, {m: m.replaced_module for m in layers if isinstance(m, SparseModule)})


def _replace(model: nn.Module, replaced: Mapping[nn.Module, nn.Module]) -> None:
    for module in list(model.modules()):
        # What stands in a layer's place holds the layer itself as its child.
        if module in replaced.values():
            continue
        for name, child in list(module._modules.items()):
            if child is not None and child in replaced:
                module._modules[name] = replaced[child]
