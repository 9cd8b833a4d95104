"""Removing channels from a model physically: new, smaller parameters and matching attributes.

Source: specification chapter 40 section 3.7.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from workbench.engine.graph.channel_groups import ChannelGroup, Member

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_COUNTED: tuple[tuple[type | tuple[type, ...], str], ...] = (
    ((nn.modules.batchnorm._NormBase,), "num_features"),
    (nn.GroupNorm, "num_channels"),
    (nn.PReLU, "num_parameters"),
)


@dataclass(frozen=True, eq=False)
class Removal:
    """Units that leave a group."""

    group: ChannelGroup
    units: tuple[int, ...]


@dataclass(frozen=True)
class AxisCut:
    """Channels to remove from one axis of one parameter; see ``Member`` for ``groups``."""

    owners: tuple[tuple[str, str], ...]
    axis: int
    groups: int
    size: int
    removed: frozenset[int]

    def kept(self) -> NDArray[np.int64]:
        return np.array([i for i in range(self.size) if i not in self.removed], np.int64)


def cuts_of(removals: Iterable[Removal]) -> tuple[AxisCut, ...]:
    """What the removals take from each axis of each parameter, all groups together."""
    members: dict[tuple[tuple[str, str], int], Member] = {}
    removed: dict[tuple[tuple[str, str], int], set[int]] = defaultdict(set)
    for removal in removals:
        if not removal.units:
            continue
        for member in removal.group.members:
            key = (member.owners[0], member.axis)
            members[key] = member
            removed[key].update(member.channels(removal.units))
    return tuple(
        AxisCut(m.owners, m.axis, m.groups, len(m.units), frozenset(removed[key]))
        for key, m in members.items()
    )


def apply_cuts(module: nn.Module, cuts: Sequence[AxisCut]) -> None:
    """Replace what is cut in ``module``, in place; its old parameters are not written."""
    modules = dict(module.named_modules(remove_duplicate=False))
    by_parameter: dict[tuple[str, str], dict[int, AxisCut]] = defaultdict(dict)
    for cut in cuts:
        if cut.removed:
            by_parameter[cut.owners[0]][cut.axis] = cut
    for (path, name), axes in by_parameter.items():
        owner = modules[path]
        old = getattr(owner, name)
        new = _cut(old, axes)
        replacement = nn.Parameter(new, old.requires_grad) if _is_parameter(owner, name) else new
        for other, alias in next(iter(axes.values())).owners:
            setattr(modules[other], alias, replacement)
    for path in dict.fromkeys(p for cut in cuts if cut.removed for p, _ in cut.owners):
        _match_attributes(modules[path])


def _is_parameter(owner: nn.Module, name: str) -> bool:
    return name in owner._parameters


def _cut(tensor: Tensor, axes: Mapping[int, AxisCut]) -> Tensor:
    """A copy of ``tensor`` without the channels of ``axes``."""
    with torch.no_grad():
        groups = max(cut.groups for cut in axes.values())
        if groups > 1:
            return _cut_grouped(tensor, axes, groups)
        result = tensor.detach()
        for axis, cut in axes.items():
            kept = torch.from_numpy(cut.kept()).to(tensor.device)
            result = result.index_select(axis, kept)
        return result.clone()


def _cut_grouped(tensor: Tensor, axes: Mapping[int, AxisCut], groups: int) -> Tensor:
    """Axis 0 holds the groups one after another; axis 1 is shared, each group has its own part."""
    sizes = (tensor.shape[0], tensor.shape[1] * groups)
    keep = [
        np.split(
            np.isin(np.arange(size), list(axes[a].removed if a in axes else ()), invert=True),
            groups,
        )
        for a, size in enumerate(sizes)
    ]
    parts = []
    for number, part in enumerate(tensor.detach().chunk(groups)):
        for axis in (0, 1):
            kept = torch.from_numpy(np.flatnonzero(keep[axis][number])).to(tensor.device)
            part = part.index_select(axis, kept)
        parts.append(part)
    return torch.cat(parts)


def _match_attributes(module: nn.Module) -> None:
    """Let the sizes that a module states agree with those of its parameters."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd):
        _match_convolution(module)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and isinstance(weight, Tensor):
        module.normalized_shape = tuple(weight.shape)
    else:
        for kinds, attribute in _COUNTED:
            if isinstance(module, kinds):
                values = [weight, getattr(module, "running_mean", None)]
                tensor = next((v for v in values if isinstance(v, Tensor)), None)
                if tensor is not None:
                    setattr(module, attribute, tensor.shape[0])


def _match_convolution(module: nn.modules.conv._ConvNd) -> None:
    weight = module.weight
    first, second = weight.shape[:2]
    if module.groups > 1 and module.groups == module.in_channels and second == 1:
        per_group = 1 if isinstance(module, _TRANSPOSED) else module.out_channels // module.groups
        module.groups = first // per_group
    if isinstance(module, _TRANSPOSED):
        module.in_channels, module.out_channels = first, second * module.groups
    else:
        module.out_channels, module.in_channels = first, second * module.groups
