"""2:4 sparsity of a model's layers: put around them, written to a record, folded away.

Source: specification chapter 40 section 4.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from workbench.engine.errors import WrongState
from workbench.engine.files.prune_config import SelectivePrune
from workbench.engine.files.record import PruneRecord, read_record, write_record
from workbench.engine.files.selective_record import read_selective
from workbench.engine.flows.arguments import check_model, check_path
from workbench.engine.flows.qat_insert import replace_modules
from workbench.engine.flows.qat_state import is_main_process, unwrapped
from workbench.engine.graph.copying import copy_model
from workbench.engine.modules.sparsity.entries import selective_entries
from workbench.engine.modules.sparsity.masked import MaskedWeight
from workbench.engine.modules.sparsity.sparse_module import SparseModule

logger = logging.getLogger("workbench.engine.flows")


def wrap_selective_layers(
    model: nn.Module,
    settings: Mapping[str, SelectivePrune],
    recorded: Mapping[str, PruneRecord] | None = None,
    *,
    source: str = "the record",
) -> tuple[PruneRecord, ...]:
    """Give the named layers 2:4 sparsity, in place, under every name they are reached by.

    Their masks are those of their weights now, or those ``recorded`` where there is one (the
    reference writes none before the first forward). Returns their entries for a record. Raises
    ``RuntimeError`` for recorded entries that do not fit.
    """
    modules = dict(model.named_modules())
    masks: dict[str, Tensor | None] = {}
    if recorded is not None:
        masks = _recorded_masks(recorded, modules, settings, source=source)
    made = {
        id(modules[name]): SparseModule(modules[name], chosen.update_freq, masks.get(name))
        for name, chosen in settings.items()
    }
    replace_modules(model, made)
    dense = [name for name in settings if bool(made[id(modules[name])].wts_mask.all())]
    if dense:
        logger.warning(
            "2:4 sparsity takes nothing from %s: that needs three input channels or more",
            ", ".join(dense),
        )
    return selective_entries(model)


def update_prune_record(model: nn.Module, record_file: str) -> None:
    """Bring the 2:4 masks in ``record_file`` up to date with those of ``model``.

    ``model``: what a create or restore function returned. Everything else in the file stays. A
    checkpoint holds the masks as well; the file is for other tools, which read them there. In a
    distributed run rank 0 writes.

    Errors: ``TypeError``; ``FileNotFoundError`` for a missing record; ``RuntimeError`` for one that
    is none, and for a model without 2:4 layers.

    Source: specification chapter 40 section 9.1 (D-8).
    """
    function = "update_prune_record"
    check_model(function, model)
    check_path(function, "record_file", record_file)
    entries = selective_entries(unwrapped(function, model))
    if not entries:
        raise WrongState("the model has no 2:4 layers", where=f"{function}()")
    if is_main_process():
        record = read_record(record_file)
        others = tuple(entry for entry in record.prune if entry.selective_prune is None)
        write_record(record_file, replace(record, prune=(*others, *entries)))


def fold_sparsity(model: nn.Module) -> nn.Module:
    """A plain copy of ``model``, in eval mode: zeros in its weights in place of its 2:4 masks.

    For what follows the training: post-training quantisation, a search, an export of your own. It
    shares its other parameters with ``model``, which stays as it is. Raises ``TypeError`` for
    anything but a model, ``RuntimeError`` for one that cannot be copied.
    """
    function = "fold_sparsity"
    check_model(function, model)
    plain = copy_model(unwrapped(function, model))
    fold_selective_layers(plain)
    return plain


def fold_selective_layers(model: nn.Module) -> None:
    """Put zeros into the weights and the layers back into their places, in place.

    Weights are replaced, not written: a copy may share them with the model in training.
    """
    layers = [m for m in model.modules() if isinstance(m, MaskedWeight)]
    for layer in layers:
        layer.fold_mask()
    inner = {id(m): m.replaced_module for m in layers if isinstance(m, SparseModule)}
    replace_modules(model, inner)


def _recorded_masks(
    recorded: Mapping[str, PruneRecord],
    modules: Mapping[str, nn.Module],
    settings: Mapping[str, SelectivePrune],
    *,
    source: str,
) -> dict[str, Tensor | None]:
    found = read_selective(recorded.values(), source=source)
    problems = [f"it has no 2:4 entry for layer {name}" for name in settings if name not in found]
    for name, (shape, _) in found.items():
        if name not in settings:
            problems.append(f"it has a 2:4 entry for layer {name}, which the config leaves dense")
        elif shape != (wanted := tuple(modules[name].get_parameter("weight").shape)):
            problems.append(f"mask_shape of layer {name} is {shape}, its weight's {wanted}")
    if problems:
        raise WrongState(
            "; ".join(problems),
            where=source,
            hint="Give the model and the config that the record was written for.",
        )
    return {name: mask for name, (_, mask) in found.items()}
