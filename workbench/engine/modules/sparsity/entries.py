"""The 2:4 layers of a model, and their entries in a record."""

from __future__ import annotations

from torch import nn

from workbench.engine.files.record import PruneRecord
from workbench.engine.files.selective_record import selective_entry
from workbench.engine.modules.sparsity.masked import MaskedWeight

_IN_QUANTISED = ".quant_module"


def masked_layers(model: nn.Module) -> dict[str, MaskedWeight]:
    """The layers with 2:4 sparsity, by the path of what stands in their place in the model."""
    return {
        name.removesuffix(_IN_QUANTISED): module
        for name, module in model.named_modules()
        if isinstance(module, MaskedWeight)
    }


def selective_entries(model: nn.Module) -> tuple[PruneRecord, ...]:
    """The record's entries of the masks as they are now."""
    return tuple(
        selective_entry(name, layer.wts_mask) for name, layer in masked_layers(model).items()
    )
