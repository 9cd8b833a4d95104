"""The 2:4 masks of a training, as tables and charts show them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from workbench.engine.files.atomic import replace_on_success
from workbench.studio.project import Project

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workbench.engine.files.prune_config import PruneLayer

MOST_SHOWN = 48
"""Outputs and inputs of a weight that a chart shows."""

NARROW = "its outputs read fewer than three channels each"
OFF = "it is not ticked for pruning in Layers, where others are"

Weights = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class MaskRow:
    """One layer: the share of its weights that stays, and why that is all of them, if it is."""

    layer: str
    density: float
    reason: str = ""


def masks_file(project: Project, method: str) -> Path:
    """A part of each masked weight, before and after."""
    return project.folder / f"{method}.masks.npz"


def mask_rows(
    model: nn.Module, prunable: Mapping[str, PruneLayer], chosen: Collection[str]
) -> list[MaskRow]:
    """Every layer of ``prunable``, in its order; ``chosen``: those the table switches on."""
    from workbench.engine.files.prune_config import CHANNEL, SELECTIVE
    from workbench.engine.modules.sparsity.entries import masked_layers

    masked = masked_layers(model)
    rows = []
    for name, layer in prunable.items():
        density, reason = 1.0, layer.obstacle(SELECTIVE)
        if name in masked:
            density = masked[name].density
            reason = NARROW if density == 1.0 else ""
        elif not reason and name not in chosen:
            reason = layer.obstacle(CHANNEL) or OFF
        rows.append(MaskRow(name, density, reason))
    return rows


def read_masks(value: Any) -> tuple[MaskRow, ...]:
    """The stored rows, checked: a project may come from anywhere."""
    if not isinstance(value, list):
        return ()
    return tuple(
        MaskRow(str(row["layer"]), float(row["density"]), str(row.get("reason", "")))
        for row in value
        if isinstance(row, dict) and {"layer", "density"} <= row.keys()
    )


def keep_masks(project: Project, method: str, model: nn.Module, rows: Sequence[MaskRow]) -> None:
    """Write a part of each masked weight, before and after, for the chart."""
    from workbench.engine.modules.sparsity.entries import masked_layers

    masked = masked_layers(model)
    arrays: dict[str, Any] = {}
    for number, row in enumerate(rows):
        if row.density < 1.0:
            layer = masked[row.layer]
            arrays[f"before_{number}"] = _part(layer.dense_weight(), layer.axis)
            arrays[f"after_{number}"] = _part(layer.masked_weight(), layer.axis)
    with replace_on_success(masks_file(project, method)) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _part(weight: Tensor, axis: int) -> Any:
    """[outputs, inputs] in the middle of the kernel: groups of four lie across the inputs."""
    if axis == 0:
        weight = weight.transpose(0, 1)
    while weight.dim() > 2:
        weight = weight[..., weight.shape[-1] // 2]
    return weight[:MOST_SHOWN, :MOST_SHOWN].detach().cpu().float().numpy()


def masked_weights(
    project: Project, method: str, rows: Sequence[MaskRow], name: str
) -> Weights | None:
    """(before, after) of a layer's weight, [outputs, inputs], at most ``MOST_SHOWN`` of each.

    None for a layer without a mask, and while nothing is written yet.
    """
    number = next((i for i, row in enumerate(rows) if row.layer == name), -1)
    try:
        with np.load(masks_file(project, method), allow_pickle=False) as arrays:
            return arrays[f"before_{number}"], arrays[f"after_{number}"]
    except (FileNotFoundError, KeyError):
        return None


def missing_zeros(path: Path, model: nn.Module) -> list[str]:
    """Layers with a 2:4 mask whose weight in an ONNX file is not 0 where the mask is."""
    import onnx
    from onnx import numpy_helper

    from workbench.engine.modules.sparsity.entries import masked_layers

    weights = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    missing = []
    for name, layer in masked_layers(model).items():
        mask = layer.wts_mask.cpu().numpy()
        stored = weights.get(f"{name}.weight")
        found = None if stored is None else numpy_helper.to_array(stored)
        # A Linear may be stored as [inputs, outputs].
        forms = () if found is None else (found, found.T)
        if not any(form.shape == mask.shape and not form[~mask].any() for form in forms):
            missing.append(name)
    return missing
