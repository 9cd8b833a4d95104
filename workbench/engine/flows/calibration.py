"""Calibration: quantise the weights, watch the activations of a few batches, find every scale.

Source: specification chapter 10 sections 8 to 11, D4, D13, D15, D16.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from workbench.engine.algorithms.dmq import inverse_balance
from workbench.engine.errors import WorkbenchError, WrongState, WrongValue
from workbench.engine.events import CancelToken, Notice, OnEvent, Progress, check, emit
from workbench.engine.files.config import QuantConfig, require_enabled
from workbench.engine.files.record import LayerRecord, Record
from workbench.engine.files.sidecar import Sidecar
from workbench.engine.flows.balancing import Factors, layer_input, needed_factors, replace_input
from workbench.engine.flows.folding import fold_plan, folded_copy
from workbench.engine.flows.layer_data import Batch, LayerCall
from workbench.engine.flows.observing import KEPT_PER_LAYER, Observers
from workbench.engine.flows.ranges import RangeRecorder, TapWatch
from workbench.engine.flows.rnn import HiddenStates
from workbench.engine.flows.rounding import tune_rounding
from workbench.engine.flows.sequential import InSequence, MeetLayer
from workbench.engine.flows.weights import calibrate_weights, with_room_for_bias
from workbench.engine.graph.capture import Captured, copy_model
from workbench.engine.graph.clamped import clamped_inputs
from workbench.engine.graph.rnn import set_joined_weight
from workbench.engine.graph.sources import input_names, input_shapes

log = logging.getLogger("workbench.engine.flows.calibration")

OnLayerInput = Callable[[str, LayerCall], None]
"""Called with a layer's name and its call (not balanced), for each batch that counts."""

_INVERSE = "workbench_inverse_balance"
"""Buffer of a balanced layer of the calibration model: ``1 / tensor_balance_factor``."""


class Calibration:
    """One calibration job: ``model`` is run on batches, then ``finalize()`` gives the record.

    ``folded`` is the float model with batch norms folded in; ``model`` the same with fake-quantised
    weights, watched. Neither shares a changed tensor with the user's model. All state lives here,
    so that two jobs in one process do not disturb each other. ``memory_budget_mb`` bounds what is
    kept of the activations; ``sample_limit`` is the most values a layer and batch that are looked
    at (extremes stay exact). ``on_layer_input`` sees each layer's input before the layer runs.
    ``balance`` holds the DMQ factors of the layers that want some. ``sequential``: each layer sees
    what the quantised layers before it give (D5); the batches are kept, within the memory budget,
    and go through the model together with the last one.

    Errors: ``WrongState`` when nothing is enabled or the calibration is incomplete, and naming a
    layer whose rounding cannot be learned; ``WrongValue`` for missing balance factors.
    """

    def __init__(
        self,
        captured: Captured,
        config: QuantConfig,
        *,
        balance: Factors | None = None,
        calibration_data: Iterable[Batch] | None = None,
        memory_budget_mb: int = 256,
        sample_limit: int | None = None,
        seed: int = 0,
        compat: bool = False,
        sequential: bool = False,
        on_layer_input: OnLayerInput | None = None,
        on_finished: Callable[[Record], None] | None = None,
        on_event: OnEvent | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        require_enabled(config)
        self.captured = captured
        self.config = config
        self.compat = compat
        self.seed = seed
        self.balance = needed_factors(captured, config, balance)
        self._on_layer_input = on_layer_input
        self._on_finished = on_finished
        self._on_event = on_event
        self._cancel = cancel

        self.plan = fold_plan(captured, config)
        self.folded = folded_copy(captured, self.plan)
        weights = calibrate_weights(
            self.folded,
            captured.layers,
            config,
            balance=self.balance,
            compat=compat,
            on_event=on_event,
            cancel=cancel,
        )
        self.tuned_weights = tune_rounding(
            captured,
            self.folded,
            config,
            weights,
            [(captured.args, captured.kwargs)] if calibration_data is None else calibration_data,
            balance=self.balance,
            seed=seed,
            compat=compat,
            memory_budget_mb=memory_budget_mb,
            on_event=on_event,
            cancel=cancel,
        )
        self.fake_weights = {**weights.weights, **self.tuned_weights}
        self._weight_records = weights.records
        # A balanced layer reads a tensor of its own; in sequence all batches run side by side.
        alone = weights.records if sequential else self.balance
        readers = clamped_inputs(captured, weights.records, {pair.bn for pair in self.plan.pairs})
        self._recorder = RangeRecorder(
            {name: clamped for name, clamped in readers.items() if name not in alone}
        )
        self._input_names = input_names(captured)
        self._batch = 0
        self._broken = False
        self._record: Record | None = None
        self._sequential = sequential
        self._watches: list[TapWatch] = []
        budget = memory_budget_mb * 2**20
        names = tuple(weights.records)
        self._observers = Observers(
            captured,
            config,
            names,
            alone=alone,
            byte_budget=budget,
            sample_limit=sample_limit,
            compat=compat,
        )
        self._hidden = HiddenStates(
            captured.layers,
            config,
            byte_budget=min(KEPT_PER_LAYER, budget // len(names)),
            sample_limit=sample_limit,
            compat=compat,
        )
        self.model = self._make_model(budget)

    def _make_model(self, byte_budget: int) -> nn.Module:
        model = copy_model(self.folded)
        for name, fake in self.fake_weights.items():
            layer = model.get_submodule(name)
            if isinstance(layer, nn.RNNBase):
                set_joined_weight(layer, fake)
            else:
                layer.register_parameter("weight", nn.Parameter(fake, requires_grad=False))
        for name, factors in self.balance.items():
            layer = model.get_submodule(name)
            weight = layer.get_parameter("weight")
            inverse = inverse_balance(factors, self.captured.layers[name].type, weight.dim())
            inverse = inverse.to(weight.device, weight.dtype)
            # A buffer, so that it goes wherever the user moves the model.
            layer.register_buffer(_INVERSE, inverse, persistent=False)
        run: Callable[..., Any]
        if not self._sequential:
            run = self.watched(model, self._see_layer)
        else:
            run = InSequence(self, model, self.config.batch_num, byte_budget, cancel=self._cancel)

        def calibrating_forward(*args: Any, **kwargs: Any) -> Any:
            check(self._cancel)
            if self._broken:
                raise WrongState(
                    "an earlier batch failed half-way, so the statistics are not whole",
                    where="calibration",
                    hint="Make the calibration model again.",
                )
            with torch.no_grad():
                try:
                    output = run(*args, **kwargs)
                except Exception as error:
                    # Some layers have counted this batch and some have not.
                    self._broken = not self.is_done
                    self._explain(error, args, kwargs)
                    raise
            self._batch_finished()
            return output

        # An instance attribute instead of a wrapping module: names, attributes and the class that
        # the user's own code looks at stay as they are (D3).
        object.__setattr__(model, "forward", calibrating_forward)
        object.__setattr__(model, "calibration", self)
        object.__setattr__(model, "workbench_wrapper", True)  # no model to start a flow from
        return model

    def watched(self, model: nn.Module, meet: MeetLayer) -> Callable[..., Any]:
        """The model's forward with every layer's input handed to ``meet``, and the rest watched."""
        watch = TapWatch(model, self.captured.taps, self._recorder)
        self._watches.append(watch)
        self.hook_inputs(model, meet)
        self._hidden.watch(model)
        for name in self._weight_records:
            model.get_submodule(name).register_forward_hook(self._after(name))
        forward = model.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            self._see_inputs(args, kwargs)
            return watch.run(forward, *args, **kwargs)

        return run

    def calibrate_layer(self, name: str, inputs: list[tuple[LayerCall, Tensor]]) -> None:
        """Find a layer's scale from its calls and balanced inputs; only the first time."""
        if self._observers.is_settled(name):
            return
        for call, value in inputs:
            self._see_layer(name, call, value)
        self._observers.scale(name)
        done = self._observers.settled
        emit(self._on_event, Progress("sequential calibration", done, len(self._weight_records)))

    def quantized(self, name: str, value: Tensor) -> Tensor:
        """A layer's balanced input, moved to the grid that was found for it."""
        return self._observers.quantized(name, value)

    def _see_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._recorder.begin()
        names = self._input_names
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):
            if isinstance(value, Tensor):
                self._recorder.see(f"input:{name}", value)

    def _explain(self, error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise ``WrongValue`` when the failure comes with inputs of other shapes than captured."""
        if isinstance(error, WorkbenchError):
            return
        given = dict((*zip(self._input_names, args, strict=False), *kwargs.items()))
        for name, wanted in input_shapes(self.captured).items():
            value = given.get(name)
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            same_rank = isinstance(shape, tuple) and len(shape) == len(wanted)
            if same_rank and all(w in (0, n) for n, w in zip(shape, wanted, strict=True)):
                continue
            text = "×".join(str(n) if n else "batch" for n in wanted)
            raise WrongValue(
                f"the batch does not fit the model: input {name} has {shape}, captured was {text}",
                where="calibration data",
                hint="Give batches of that shape, or capture with an example of the new one.",
            ) from error

    def hook_inputs(self, model: nn.Module, meet: MeetLayer | None) -> list[RemovableHandle]:
        """Balance every layer's input and hand it to ``meet``, if there is one."""
        return [
            model.get_submodule(name).register_forward_pre_hook(
                self._before(name, meet), with_kwargs=True
            )
            for name in self._weight_records
        ]

    def _before(self, name: str, meet: MeetLayer | None) -> Callable[..., Any]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = value = layer_input(name, args, kwargs)
            # The watch for adds must not see the observer's own arithmetic.
            with torch._C.DisableTorchFunction():
                if name in self.balance:
                    value = given * module.get_buffer(_INVERSE)
                if meet is not None:
                    value = meet(name, LayerCall(given, args, kwargs), value)
            return None if value is given else replace_input(args, kwargs, value)

        return before

    def _see_layer(self, name: str, call: LayerCall, value: Tensor) -> Tensor:
        """Observe ``value``, the balanced input of a layer's ``call``; returns ``value``."""
        if self._observers.counts(name):
            if self._on_layer_input is not None:
                self._on_layer_input(name, call)
            self._observers.see(name, value, self._recorder.extremes_of(name, value))
        return value

    def _after(self, name: str) -> Callable[..., None]:
        def after(module: nn.Module, args: Any, output: Any) -> None:
            if self.is_done:
                return
            with torch._C.DisableTorchFunction():
                if isinstance(output, Tensor):
                    self._recorder.see(name, output)
                self._observers.settle(name)

        return after

    def _batch_finished(self) -> None:
        if self.is_done:
            return
        self._observers.wait()
        self._batch += 1
        emit(
            self._on_event,
            Progress("calibration", min(self._batch, self.config.batch_num), self.config.batch_num),
        )
        missing = self.missing()
        if not missing and self._batch >= self.config.batch_num:
            self._close()
        elif self._batch == self.config.batch_num:
            notice = f"more batches are needed; so far {self._listed(missing)}"
            log.warning(notice)
            emit(self._on_event, Notice(notice))

    def missing(self) -> dict[str, int]:
        """Layers that have seen fewer than ``batch_num`` batches, with the number seen."""
        return {} if self.is_done else self._observers.missing()

    def _listed(self, missing: Mapping[str, int]) -> str:
        return ", ".join(f"{n} ({seen} of {self.config.batch_num})" for n, seen in missing.items())

    @property
    def is_done(self) -> bool:
        return self._record is not None

    def _close(self) -> None:
        layers: dict[str, LayerRecord] = {}
        for name, record in self._weight_records.items():
            found = self._observers.scale(name)
            layers[name] = replace(
                self._hidden.complete(name, record),
                scale_d=found.scale,
                offset_d=found.offset,
                act_type=f"INT{self._observers.bits(name)}",
            )
            if not self.compat and name in self.fake_weights:
                layers[name] = self._make_room(name, layers[name])
        self._record = Record(layers=layers)
        if self._on_finished is not None:
            self._on_finished(self._record)

    def _make_room(self, name: str, record: LayerRecord) -> LayerRecord:
        record, fake = with_room_for_bias(
            self.folded.get_submodule(name),
            self.captured.layers[name],
            record,
            self.fake_weights[name],
        )
        self.fake_weights[name] = fake
        if name in self.tuned_weights:
            self.tuned_weights[name] = fake
        return record

    def finalize(self, *, allow_fewer: bool = False) -> Record:
        """The finished record.

        Errors: ``WrongState`` naming the layers that have not seen all batches; with
        ``allow_fewer`` those that saw at least one are computed from what they saw.
        """
        if self._record is None:
            missing = self.missing()
            if self._broken or not (allow_fewer and all(missing.values())):
                raise WrongState(
                    f"calibration is incomplete; batches seen: {self._listed(missing)}",
                    where="calibration",
                    hint="run the calibration model on more batches, or lower batch_num.",
                )
            notice = f"calibrated from fewer batches than batch_num = {self.config.batch_num}"
            log.warning(notice)
            emit(self._on_event, Notice(notice))
            self._close()
        assert self._record is not None
        return self._record

    def initial_record(self) -> Record:
        """The record before any batch: weight factors only (section 12.3)."""
        return Record(layers=dict(self._weight_records))

    def sidecar(self) -> Sidecar:
        """Ranges of layer outputs, adds and inputs seen so far, and the flow's options."""
        unreliable = {key for watch in self._watches for key in watch.unreliable}
        return Sidecar(compat=self.compat, ranges=self._recorder.ranges(unreliable))
