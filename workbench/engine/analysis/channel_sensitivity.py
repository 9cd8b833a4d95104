"""How much the loss changes when a channel goes: first-order Taylor expansion.

Source: specification chapter 40 section 6.4; Molchanov et al. 2019, arXiv:1906.10771.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from workbench.engine.algorithms.channel_choice import filter_rows
from workbench.engine.errors import WrongState, WrongValue
from workbench.engine.events import CancelToken, OnEvent, Progress, check, emit
from workbench.engine.graph.channel_groups import ChannelGroup, Member
from workbench.engine.graph.copying import copy_model

Loss = Callable[[Any, Any], Tensor]


def taylor_sensitivity(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    batches: Iterable[tuple[tuple[Any, ...], Any]],
    loss_func: Loss,
    *,
    include_consumers: bool = True,
    absolute: bool = True,
    total: int = 0,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> tuple[NDArray[np.float64], ...]:
    """One value a unit for every group: ``sum |weight · gradient|`` over the unit's weights.

    ``batches``: pairs of the model's positional inputs and what ``loss_func(output, label)`` gets.
    ``|weight · gradient|`` is summed over them; without ``absolute`` the gradient is, which is near
    0 for every weight of a trained model. The model is run in
    eval mode on a copy that shares its weights; its gradients stay as they are.
    ``include_consumers``: the weights that read a channel count like those that make it.

    Errors: ``ValueError`` for a loss that is no finite scalar; ``RuntimeError`` when there is no
    batch or no gradient.
    """
    work, weights = _watched(model, groups, include_consumers=include_consumers)
    totals = [np.zeros(group.size) for group in groups]
    seen = 0
    for inputs, label in batches:
        check(cancel)
        _loss(loss_func, work(*inputs), label).backward()  # type: ignore[no-untyped-call]
        seen += 1
        if absolute:
            _add(totals, groups, weights, include_consumers=include_consumers)
            for weight in weights.values():
                weight.grad = None
        emit(on_event, Progress("Measuring the sensitivity of channels", seen, total))
    if not seen:
        raise WrongState("there is no batch", where="sensitivity")
    if not absolute:
        if all(weight.grad is None for weight in weights.values()):
            raise WrongState("the loss does not depend on any weight", where="sensitivity")
        _add(totals, groups, weights, include_consumers=include_consumers)
    return tuple(totals)


def _watched(
    model: nn.Module, groups: Sequence[ChannelGroup], *, include_consumers: bool
) -> tuple[nn.Module, dict[tuple[str, str], nn.Parameter]]:
    """A copy over the same memory in which only the groups' weights collect gradients."""
    work = copy_model(model)
    modules = dict(work.named_modules(remove_duplicate=False))
    wanted = {m.owners for g in groups for m in _members(g, include_consumers)}
    own: dict[int, nn.Parameter] = {}
    for module in modules.values():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                if id(parameter) not in own:
                    own[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
                    # A module with two names is met again, with the new parameter.
                    own[id(own[id(parameter)])] = own[id(parameter)]
                module._parameters[name] = own[id(parameter)]
    weights = {}
    for owners in wanted:
        path, name = owners[0]
        weight = modules[path]._parameters[name]
        assert weight is not None
        weights[owners[0]] = weight.requires_grad_()
    return work, weights


def _members(group: ChannelGroup, include_consumers: bool) -> list[Member]:
    roles = ("producer", "consumer") if include_consumers else ("producer",)
    return [m for m in group.members if m.role in roles]


def _loss(loss_func: Loss, output: Any, label: Any) -> Tensor:
    try:
        loss = loss_func(output, label)
    except Exception as error:
        raise WrongValue(
            f"the loss cannot be computed: {type(error).__name__}: {error}",
            where="sensitivity",
            hint="The label must fit the output; set_loss_func sets another loss.",
        ) from error
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not bool(torch.isfinite(loss).all()):
        given = f"{loss}" if isinstance(loss, Tensor) and loss.numel() == 1 else type(loss).__name__
        raise WrongValue(
            f"the loss is {given}; allowed: one finite number",
            where="sensitivity",
            hint="Check the weights and the label for NaN.",
        )
    return loss.reshape(())


def _add(
    totals: list[NDArray[np.float64]],
    groups: Sequence[ChannelGroup],
    weights: dict[tuple[str, str], nn.Parameter],
    *,
    include_consumers: bool,
) -> None:
    """Add every unit's share of ``|weight · gradient|``."""
    places: dict[tuple[str, str], dict[int, list[tuple[int, Member]]]] = {}
    for number, group in enumerate(groups):
        for member in _members(group, include_consumers):
            axes = places.setdefault(member.owners[0], {})
            axes.setdefault(member.axis, []).append((number, member))
    for key, axes in places.items():
        weight = weights[key]
        if weight.grad is None:
            continue
        product = (weight.detach() * weight.grad).abs_()
        for members in axes.values():
            values = _along(product, members[0][1])
            for number, member in members:
                inside = member.units >= 0
                totals[number] += np.bincount(
                    member.units[inside], weights=values[inside], minlength=len(totals[number])
                )


def _along(product: Tensor, member: Member) -> NDArray[np.float64]:
    """Sums of a weight-shaped tensor for each channel of the member's axis."""
    if member.groups > 1 and member.axis == 1:
        sums = filter_rows(product, member.axis, member.groups).sum(1)
    else:
        sums = product.sum([a for a in range(product.dim()) if a != member.axis])
    values: NDArray[np.float64] = sums.double().cpu().numpy()
    return values
