"""Sequential calibration (D5): a layer is calibrated on what the quantised layers before it give.

All batches go through the network side by side, one thread each of which exactly one runs at any
time. At every layer they wait for each other: the layer's scale is found from all of them, then
each goes on with its quantised input. So every layer is computed once a batch.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from workbench.engine.errors import WrongState
from workbench.engine.events import CancelToken, check
from workbench.engine.flows.layer_data import LayerCall
from workbench.engine.graph.capture import Captured
from workbench.engine.graph.copying import copy_model

Arrive = Callable[[str, Any], None]
"""Called by a run that has reached a place, with what it brings; returns when all may go on."""

Meet = Callable[[str, list[tuple[int, Any]]], None]
"""Called once for a place, with the runs that wait there in order and what each brings."""


MeetLayer = Callable[[str, LayerCall, Tensor], Tensor]
"""Gets a layer's name, its call and its balanced input; returns what the layer computes on."""


class _Abandoned(BaseException):
    """Ends a run whose result nobody wants any more; no ``except Exception`` may stop it."""


class _Run(threading.Thread):
    """One run; it moves only while the scheduler waits in ``step``."""

    def __init__(self, body: Callable[[Arrive], Any], index: int) -> None:
        super().__init__(name=f"sequential calibration, batch {index + 1}", daemon=True)
        self._context = contextvars.copy_context()
        self._body = body
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._abandoned = False
        self.index = index
        self.place: str | None = None
        self.brought: Any = None
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        self._go.acquire()
        try:
            if not self._abandoned:
                self.result = self._context.run(self._body, self._arrive)
        except _Abandoned:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.place = self.brought = None
            self._back.release()

    def _arrive(self, place: str, brought: Any) -> None:
        self.place, self.brought = place, brought
        self._back.release()
        self._go.acquire()
        self.place = self.brought = None
        if self._abandoned:
            raise _Abandoned

    def step(self) -> None:
        """Let it move to its next place or its end; raises what it raised."""
        self._go.release()
        self._back.acquire()
        if self.error is not None:
            raise self.error

    def abandon(self) -> None:
        if self.ident is not None:
            self._abandoned = True
            self._go.release()
            self.join()


def run_in_lockstep(
    bodies: Sequence[Callable[[Arrive], Any]],
    position: Callable[[str], int],
    meet: Meet,
    *,
    cancel: CancelToken | None = None,
) -> list[Any]:
    """Run all ``bodies`` in turn, never two at once; returns their results.

    When no run can move, those that wait at the place with the smallest ``position`` meet and go
    on. The first error of a run, of ``meet`` or of ``cancel`` ends every run and is raised.
    """
    runs = [_Run(body, index) for index, body in enumerate(bodies)]
    try:
        for run in runs:
            check(cancel)
            run.start()
            run.step()
        while waiting := [run for run in runs if run.place is not None]:
            place = min((str(run.place) for run in waiting), key=position)
            here = [run for run in waiting if run.place == place]
            meet(place, [(run.index, run.brought) for run in here])
            for run in here:
                check(cancel)
                run.step()
        return [run.result for run in runs]
    finally:
        for run in runs:
            run.abandon()


class SequentialJob(Protocol):
    """What ``InSequence`` asks of the calibration that it belongs to."""

    captured: Captured

    def hook_inputs(self, model: nn.Module, meet: MeetLayer | None) -> list[RemovableHandle]: ...
    def watched(self, model: nn.Module, meet: MeetLayer) -> Callable[..., Any]: ...
    def calibrate_layer(self, name: str, inputs: list[tuple[LayerCall, Tensor]]) -> None: ...
    def quantized(self, name: str, value: Tensor) -> Tensor: ...


class KeptBatches:
    """Copies of the inputs of the batches that came so far, within ``byte_budget``."""

    def __init__(self, byte_budget: int) -> None:
        self._budget = byte_budget
        self._used = 0
        self._batches: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises ``WrongState`` when the budget does not hold one more batch."""
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._used += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if self._used > self._budget:
            raise WrongState(
                f"sequential calibration keeps the inputs of all batches; {self._used / 2**20:.0f} "
                f"MB of {len(self._batches) + 1} batches exceed memory_budget_mb = "
                f"{self._budget // 2**20}",
                where="calibration",
                hint="Raise memory_budget_mb, give fewer or smaller batches, or set "
                "sequential=False.",
            )
        # A loader may use its tensors again.
        own = lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf
        self._batches.append(pytree.tree_map(own, (args, kwargs)))

    def take(self) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """All batches; they are forgotten here."""
        batches, self._batches = self._batches, []
        return batches


def bare_copies(model: nn.Module, count: int, own: Sequence[str]) -> list[nn.Module]:
    """Copies of a model for runs side by side, because a forward may keep things in ``self``.

    They come without the instance attributes ``own``.
    """
    kept = {key: vars(model).pop(key) for key in own}
    try:
        return [copy_model(model) for _ in range(count)]
    finally:
        vars(model).update(kept)


def grad_mode() -> Callable[[], Any]:
    """The mode for a new thread to compute in: torch's modes hold for one thread only."""
    return torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad


class InSequence:
    """The forward of a calibration model that keeps its batches and runs them all with the last.

    Earlier calls give what the model with quantised weights computes, as all later ones do.
    """

    def __init__(
        self,
        job: SequentialJob,
        model: nn.Module,
        batch_num: int,
        byte_budget: int,
        *,
        cancel: CancelToken | None = None,
    ) -> None:
        self._job = job
        self._model = model
        self._forward = model.forward
        self._left = batch_num
        self._kept = KeptBatches(byte_budget)
        self._cancel = cancel
        self._hooks = job.hook_inputs(model, None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._left:
            self._kept.keep(args, kwargs)
            self._left -= 1
            if not self._left:
                return self._run_all()
        return self._forward(*args, **kwargs)

    def _run_all(self) -> Any:
        for hook in self._hooks:
            hook.remove()
        batches = self._kept.take()
        copies = bare_copies(self._model, len(batches), ("forward", "calibration"))
        self._hooks = self._job.hook_inputs(self._model, None)
        order = {name: info.order for name, info in self._job.captured.layers.items()}
        outputs = run_in_lockstep(
            [self._body(*pair, grad_mode()) for pair in zip(copies, batches, strict=True)],
            order.__getitem__,
            lambda name, arrived: self._job.calibrate_layer(name, [x for _, x in arrived]),
            cancel=self._cancel,
        )
        return outputs[-1]

    def _body(
        self, model: nn.Module, batch: tuple[tuple[Any, ...], dict[str, Any]], mode: Any
    ) -> Callable[[Arrive], Any]:
        def go(arrive: Arrive) -> Any:
            def meet(name: str, call: LayerCall, value: Tensor) -> Tensor:
                arrive(name, (call, value))
                return self._job.quantized(name, value)

            with mode():
                return self._job.watched(model, meet)(*batch[0], **batch[1])

        return go
