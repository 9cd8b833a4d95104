"""Ranges of a student's tensors, for the file with int8 kernels (index decision 12)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.files.sidecar import TensorRange
from workbench.engine.flows.distill_student import student_layers
from workbench.engine.flows.ranges import RangeRecorder, TapWatch
from workbench.engine.graph.taps import Tap

_ATTRIBUTE = "workbench_ranges"


@dataclass
class StudentRanges:
    """Belongs to a student. ``norms``: layer -> the batch norm that is folded into it.

    ``inputs``: names, and ``shapes`` those of the example inputs that the student was made with.
    ``found`` is empty until the student was distilled in this process.
    """

    taps: tuple[Tap, ...]
    inputs: tuple[str, ...]
    norms: Mapping[str, str]
    shapes: tuple[tuple[int, ...], ...] = ()
    found: dict[str, TensorRange] = field(default_factory=dict)

    @torch.no_grad()
    def record(self, student: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> None:
        """Find the ranges of layer outputs, additions and inputs on these batches."""
        recorder = RangeRecorder()
        handles = [
            student.get_submodule(self.norms.get(name, name)).register_forward_hook(
                _see(recorder, name)
            )
            for name in student_layers(student)
        ]
        watch = TapWatch(student, self.taps, recorder)
        try:
            for batch in batches:
                for name, value in zip(self.inputs, batch, strict=False):
                    recorder.see(f"input:{name}", value)
                watch.run(student, *batch)
        finally:
            watch.remove()
            for handle in handles:
                handle.remove()
        self.found = recorder.ranges(watch.unreliable)

    def attach(self, student: nn.Module) -> None:
        object.__setattr__(student, _ATTRIBUTE, self)


def ranges_of(student: nn.Module) -> StudentRanges | None:
    """What ``create_distill_model`` attached; None for a student that is another function's."""
    found = vars(student).get(_ATTRIBUTE)
    return found if isinstance(found, StudentRanges) else None


def _see(recorder: RangeRecorder, name: str) -> Callable[..., None]:
    def see(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            with torch._C.DisableTorchFunction():
                recorder.see(name, output)

    return see
