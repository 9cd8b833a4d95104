"""Channel groups as ``prune_record`` entries, and back.

Source: specification chapter 40 section 5, index decision 25.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from torch import nn

from workbench.engine.errors import WrongState
from workbench.engine.files.record import Attr, PruneNode, PruneRecord, Record
from workbench.engine.flows.channel_surgery import AxisCut, Removal
from workbench.engine.graph.channel_groups import ChannelGroup, Member

logger = logging.getLogger("workbench.engine.flows")

_OPERATORS = {
    "conv1d": "Conv", "conv2d": "Conv", "conv3d": "Conv", "conv_transpose1d": "ConvTranspose",
    "conv_transpose2d": "ConvTranspose", "conv_transpose3d": "ConvTranspose",
    "batch_norm": "BatchNormalization", "layer_norm": "LayerNormalization",
    "rms_norm": "RMSNormalization", "group_norm": "GroupNormalization",
    "instance_norm": "InstanceNormalization", "prelu": "PRelu", "embedding": "Gather",
}  # fmt: skip
"""ATen operator -> ONNX operator, as the record names them."""


def group_record(removal: Removal, module: nn.Module, *, flat: Mapping[str, bool]) -> PruneRecord:
    """The entry of one group; ``flat``: Linear layers whose input has two dimensions.

    Producers are listed before the others, both in the order of execution; indices are in each
    module's own axis, and channels that do not follow each other have several nodes.
    """
    group = removal.group
    modules = dict(module.named_modules())
    making = {m.module for m in group.producers}
    shared = group.stride if len(group.cells) > 1 else 1
    producers: list[PruneNode] = []
    consumers: list[PruneNode] = []
    listed: set[str] = set()
    for member in group.members:
        owner = modules[member.module]
        kind = _operator(member, owner, flat)
        if member.role == "producer":
            grouped = owner.groups if isinstance(owner, nn.modules.conv._ConvNd) else 1
            producers += _nodes(member, removal.units, kind, group=grouped, prune_group=shared)
        elif member.operator == "parameter" or (member.role == "pass" and member.module in making):
            continue
        elif member.module not in listed:
            listed.add(member.module)
            consumers += _nodes(member, removal.units, kind, group=member.groups)
    return PruneRecord(tuple(producers), tuple(consumers))


def _operator(member: Member, owner: nn.Module, flat: Mapping[str, bool]) -> str:
    if isinstance(owner, nn.Linear):
        return "Gemm" if flat.get(member.module, False) and owner.bias is not None else "MatMul"
    return _OPERATORS.get(member.operator, member.operator)


def _nodes(
    member: Member,
    units: tuple[int, ...],
    kind: str,
    *,
    group: int = 1,
    prune_group: int = 1,
) -> Iterable[PruneNode]:
    """One node for every run of channels of the group."""
    inside = np.flatnonzero(member.units >= 0)
    gone = np.isin(member.units, units)
    for run in np.split(inside, np.flatnonzero(np.diff(inside) > 1) + 1):
        removed = tuple(run[gone[run]].tolist())
        attributes = [
            Attr("type", "STRING", s=kind.encode()),
            Attr("begin", "INT", i=int(run[0])),
            Attr("end", "INT", i=int(run[-1]) + 1),
        ]
        attributes += [
            Attr(name, "INT", i=value)
            for name, value in (("group", group), ("prune_group", prune_group))
            if value > 1
        ]
        if removed:
            attributes.append(Attr("prune_index", "INTS", ints=removed))
        yield PruneNode(member.module, tuple(attributes))


def removed_channels(record: Record, *, role: str) -> dict[str, set[int]]:
    """Module -> channels that a record takes from it as ``producer`` or ``consumer``."""
    found: dict[str, set[int]] = defaultdict(set)
    for entry in record.prune:
        for node in entry.producer if role == "producer" else entry.consumer:
            found[node.name].update(i for a in node.attr if a.name == "prune_index" for i in a.ints)
    return dict(found)


def removals_of(
    record: Record, groups: Iterable[ChannelGroup], *, source: str
) -> tuple[Removal, ...]:
    """What a record removes from each group; ``RuntimeError`` when it is another model's."""
    recorded = removed_channels(record, role="producer")
    removals: list[Removal] = []
    covered: dict[str, set[int]] = defaultdict(set)
    for group in groups:
        units: set[int] = set()
        for member in group.producers:
            gone = recorded.get(member.module, set())
            inside = [i for i in gone if i < len(member.units) and member.units[i] >= 0]
            units.update(int(member.units[i]) for i in inside)
        for member in group.producers:
            covered[member.module].update(member.channels(units))
        removals.append(Removal(group, tuple(sorted(units))))
    wrong = [name for name, gone in recorded.items() if gone and gone != covered[name]]
    if wrong:
        raise WrongState(
            f"the channels that it removes from {', '.join(wrong)} are no groups of this model",
            where=source,
            hint="Give the record that was written for this model.",
        )
    return tuple(removals)


def as_recorded(
    cuts: Iterable[AxisCut],
    removals: Iterable[Removal],
    record: Record,
    *,
    source: str,
) -> tuple[AxisCut, ...]:
    """The cuts, with the inputs of modules cut as the record says: its checkpoint was.

    A record of AMCT may name wrong input channels behind a concatenation (D-2 of section 9.1).
    """
    recorded = removed_channels(record, role="consumer")
    reading = {
        (m.owners[0], m.axis)
        for removal in removals
        for m in removal.group.members
        if m.role == "consumer"
        or (m.role == "pass" and m.module not in {p.module for p in removal.group.producers})
    }
    found = []
    for cut in cuts:
        name = cut.owners[0][0]
        given = recorded.get(name)
        if given and (cut.owners[0], cut.axis) in reading and given != cut.removed:
            logger.warning(
                "%s removes input channels of %s that are not those of its producers; it is "
                "followed because the checkpoint's weights were cut so",
                source,
                name,
            )
            cut = replace(cut, removed=frozenset(given))
        found.append(cut)
    return tuple(found)


def check_known(record: Record, module: nn.Module, *, source: str) -> None:
    """Raise ``RuntimeError`` for a producer or a 2:4 layer that the model does not have."""
    names = {name for name, _ in module.named_modules()}
    nodes = [n for entry in record.prune for n in entry.producer]
    nodes += [entry.selective_prune for entry in record.prune if entry.selective_prune]
    unknown = sorted({node.name for node in nodes} - names)
    if unknown:
        raise WrongState(
            f'cannot find "{", ".join(unknown)}" in the model',
            where=source,
            hint="Give the record that was written for this model.",
        )
