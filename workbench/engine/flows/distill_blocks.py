"""What a group reads and must give, batch by batch: captured once, or computed again each time.

Source: specification chapter 50 sections 8.2 and 8.3, D4, D16 and D21.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from workbench.engine.errors import WrongState, WrongValue
from workbench.engine.events import CancelToken, OnEvent, Progress, check, emit
from workbench.engine.flows.distill_ranges import ranges_of
from workbench.engine.flows.distill_sample import naming_batch
from workbench.engine.flows.distill_store import TensorStore, settled
from workbench.engine.flows.layer_data import collect_inputs
from workbench.engine.flows.training_data import device_of, to_device

_CHAIN_ERROR = 1e-5
_SWITCH = 0.5


class GroupError(WrongValue, WrongState):
    """A group that cannot be trained."""


@dataclass(frozen=True)
class Block:
    """One batch of a group: its input, what it must give, and whether the teacher's input is it."""

    value: Tensor
    target: Tensor
    from_teacher: bool


class BlockSource(Protocol):
    """Gives the batches of one group after another."""

    def open(self, group: int, cancel: CancelToken | None) -> None:
        """Make the batches of a group ready; those before it are trained and stay as they are."""
        ...

    def block(self, batch: int) -> Block:
        """A batch of the open group."""
        ...

    def close_group(self) -> None:
        """The open group is trained: what only it needed can go."""
        ...


@dataclass(frozen=True)
class Chains:
    """The groups: names, and the modules of teacher and student, in the same order."""

    names: tuple[tuple[str, ...], ...]
    teacher_model: nn.Module
    student_model: nn.Module
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", device_of(self.student_model))

    def teacher(self, group: int) -> list[nn.Module]:
        return [self.teacher_model.get_submodule(name) for name in self.names[group]]

    def student(self, group: int) -> list[nn.Module]:
        return [self.student_model.get_submodule(name) for name in self.names[group]]

    def title(self, group: int) -> str:
        names = self.names[group]
        ends = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        return f"group {group + 1} ({ends})"


def run_chain(modules: Sequence[nn.Module], value: Tensor) -> Tensor:
    """The modules one after another; ``value`` itself is not written to."""
    result = value.clone() if getattr(modules[0], "inplace", False) else value
    for module in modules:
        result = module(result)
    return result


def choose_input(from_teacher: Tensor, from_student: Tensor) -> bool:
    """Whether the teacher's input is to be used: the student's is too far from it.

    Too far: the mean squared difference is above half the smaller of the two mean squares.
    """
    x, y = from_teacher.float(), from_student.float()
    difference = (x - y).square().mean()
    limit = _SWITCH * torch.minimum(x.square().mean(), y.square().mean())
    return bool(difference > limit)


def group_input(model: nn.Module, name: str, inputs: tuple[Tensor, ...]) -> Tensor:
    """What a forward of ``model`` calls module ``name`` with; the forward ends there."""
    try:
        (call,) = collect_inputs(model, name, [(inputs, {})])
    except WrongState as error:
        raise _not_reached(name) from error
    return call.value


class TeacherPass:
    """One forward of the teacher a batch: the input of every group."""

    def __init__(self, chains: Chains) -> None:
        self._chains = chains
        self.follows: set[int] = set()
        """Groups that read exactly what the group before them gives."""

    def inputs(self, batch: tuple[Tensor, ...]) -> list[Tensor]:
        """Copies of the groups' inputs; ``WrongState`` for a group that a batch does not reach."""
        return self._run(batch, _Watch(self._chains, outputs=False))

    def examined(self, batch: tuple[Tensor, ...]) -> list[Tensor]:
        """``inputs``, with a check that every group is a chain.

        Raises ``GroupError`` (``ValueError``) naming a group whose modules, run one after another,
        do not give what the last of them gave in the forward (D16); ``WrongState`` for inf or NaN.
        """
        watch = _Watch(self._chains, outputs=True)
        inputs = self._run(batch, watch)
        before: Tensor | None = None
        for group, value in enumerate(inputs):
            # A module that is called several times gave other tensors, too.
            if group in watch.handed_on and before is not None and _same(before, value):
                self.follows.add(group)
            before = self._chained(group, value)
            last = self._chains.teacher(group)[-1]
            if not any(_same(before, output) for output in watch.given.get(last, ())):
                if not bool(torch.isfinite(before).all()):
                    raise WrongState(
                        "what the float model computes there holds inf or NaN",
                        where=self._chains.title(group),
                        hint="Check the training data and the model's weights.",
                    )
                raise self._no_chain(
                    group,
                    "its modules, run one after another, do not give what "
                    f"{self._chains.names[group][-1]} gives in the model",
                )
        return inputs

    def target(self, group: int, value: Tensor) -> Tensor:
        """What the group must give: the teacher's modules on their own input."""
        with torch.no_grad():
            return run_chain(self._chains.teacher(group), value)

    def _run(self, batch: tuple[Tensor, ...], watch: _Watch) -> list[Tensor]:
        teacher = self._chains.teacher_model
        with watch, torch.no_grad():
            teacher(*to_device(batch, device_of(teacher)))
        for group, members in enumerate(self._chains.names):
            if group not in watch.inputs:
                raise _not_reached(members[0])
        return [watch.inputs[group] for group in range(len(self._chains.names))]

    def _chained(self, group: int, value: Tensor) -> Tensor:
        try:
            return self.target(group, value)
        except Exception as error:
            raise self._no_chain(group, f"{type(error).__name__}: {error}") from error

    def _no_chain(self, group: int, why: str) -> GroupError:
        return GroupError(
            f"the group is not a chain: {why}",
            where=self._chains.title(group),
            hint="Its modules must read one another, in this order.",
        )


class _Watch(ExitStack):
    """Hooks on the teacher during one forward.

    ``inputs``: of each group's first module. With ``outputs`` also ``given``, what the groups' last
    modules gave in all their calls, and ``handed_on``: groups whose input is the very tensor that
    the last module of the group before gave, not written to since.
    """

    def __init__(self, chains: Chains, *, outputs: bool) -> None:
        super().__init__()
        self.inputs: dict[int, Tensor] = {}
        self.given: dict[nn.Module, list[Tensor]] = {}
        self.handed_on: set[int] = set()
        self._latest: dict[nn.Module, tuple[Tensor, int]] = {}
        lasts = [chains.teacher(group)[-1] for group in range(len(chains.names))]
        for group in range(len(lasts)):
            hook = self._before(group, lasts[group - 1] if group else None)
            first = chains.teacher(group)[0]
            self.callback(first.register_forward_pre_hook(hook, with_kwargs=True).remove)
        for last in dict.fromkeys(lasts) if outputs else ():
            self.callback(last.register_forward_hook(self._after).remove)

    def _before(self, group: int, previous: nn.Module | None) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = args[0] if args else kwargs.get("input")
            if group in self.inputs or not isinstance(value, Tensor):
                return
            self.inputs[group] = settled(value)
            latest = self._latest.get(previous) if previous is not None else None
            if latest is not None and latest[0] is value and latest[1] == value._version:
                self.handed_on.add(group)

        return hook

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self.given.setdefault(module, []).append(settled(output))
            self._latest[module] = (output, output._version)


class CapturedBlocks:
    """One forward of the teacher a batch for all groups, one part of the student's for each."""

    def __init__(self, chains: Chains, store: TensorStore) -> None:
        self._chains = chains
        self._store = store
        self.batches = 0
        self._teacher = TeacherPass(chains)
        self._group = -1
        self._inputs_of = -1
        self._chosen: list[bool] = []

    def capture(self, batch: tuple[Tensor, ...], *, first: bool) -> int:
        """Keep what the groups read and give for one batch; the bytes that takes."""
        size = 0
        values = self._teacher.examined(batch) if first else self._teacher.inputs(batch)
        for group, value in enumerate(values):
            target = self._teacher.target(group, value)
            self._store.append(f"{group} input", value)
            self._store.append(f"{group} target", target)
            size += value.nbytes + target.nbytes
        self.batches += 1
        return size

    def open(self, group: int, cancel: CancelToken | None) -> None:
        previous = group - 1
        follows = group in self._teacher.follows and self._inputs_of == previous >= 0
        self._chosen = []
        for batch in range(self.batches):
            check(cancel)
            with torch.no_grad():
                if follows:
                    kept = self._store.get(f"{previous} student", batch)
                    value = run_chain(self._chains.student(previous), kept)
                else:
                    inputs = model_batch(self._store, batch)
                    value = group_input(
                        self._chains.student_model, self._chains.names[group][0], inputs
                    )
            self._store.append(f"{group} student", value)
            teacher = self._store.get(f"{group} input", batch).to(value.device)
            self._chosen.append(choose_input(teacher, value))
        self._store.drop(f"{previous} student")
        self._group = self._inputs_of = group

    def block(self, batch: int) -> Block:
        role = "input" if self._chosen[batch] else "student"
        device = self._chains.device
        return Block(
            self._store.get(f"{self._group} {role}", batch).to(device),
            self._store.get(f"{self._group} target", batch).to(device),
            self._chosen[batch],
        )

    def close_group(self) -> None:
        for role in ("input", "target"):
            self._store.drop(f"{self._group} {role}")
        if self._group + 1 not in self._teacher.follows:
            self._store.drop(f"{self._group} student")


class RecomputedBlocks:
    """Nothing is kept but the model's inputs: a part of both forwards for every step."""

    def __init__(self, chains: Chains, store: TensorStore) -> None:
        self._chains = chains
        self._store = store
        self._teacher = TeacherPass(chains)
        self._group = -1

    def open(self, group: int, cancel: CancelToken | None) -> None:
        self._group = group

    def block(self, batch: int) -> Block:
        chains, inputs = self._chains, model_batch(self._store, batch)
        name = chains.names[self._group][0]
        there = to_device(inputs, device_of(chains.teacher_model))
        with naming_batch(batch, inputs, ranges_of(chains.student_model)):
            teacher = settled(group_input(chains.teacher_model, name, there))
            target = self._teacher.target(self._group, teacher).to(chains.device)
        student = settled(group_input(chains.student_model, name, inputs))
        teacher = teacher.to(chains.device)
        chosen = choose_input(teacher, student)
        return Block(teacher if chosen else student, settled(target), chosen)

    def close_group(self) -> None:
        self._group = -1


def model_batch(store: TensorStore, batch: int) -> tuple[Tensor, ...]:
    """The model's inputs of a batch."""
    inputs: list[Tensor] = []
    while store.has(f"model {len(inputs)}", batch):
        # Models may write to their inputs.
        inputs.append(store.get(f"model {len(inputs)}", batch).clone())
    return tuple(inputs)


def keep_model_batch(store: TensorStore, inputs: tuple[Tensor, ...]) -> None:
    for number, value in enumerate(inputs):
        store.append(f"model {number}", value)


def calibrate(
    student: nn.Module,
    store: TensorStore,
    batches: int,
    count: int,
    on_event: OnEvent | None,
    cancel: CancelToken | None,
) -> None:
    """``count`` forwards of the student: they find the ranges of its activations."""
    for number in range(count):
        check(cancel)
        batch = model_batch(store, number % batches)
        with torch.no_grad(), naming_batch(number % batches, batch, ranges_of(student)):
            student(*batch)
        emit(on_event, Progress("calibrate", number + 1, count))


def _not_reached(name: str) -> WrongState:
    return WrongState(
        "a batch does not reach it with a tensor, so its group cannot be trained",
        where=f"layer {name}",
        hint="Take the group out of the configuration, or give batches that run it.",
    )


def _same(result: Tensor, output: Tensor) -> bool:
    if result.shape != output.shape:
        return False
    difference = (result.float() - output.float()).norm()
    return bool(difference <= _CHAIN_ERROR * output.float().norm())
