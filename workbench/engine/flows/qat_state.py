"""What a model in training for quantisation knows of itself, and the record that it writes.

Source: specification chapter 30 sections 4.4, 5.7 and 7.1, with A1, A2 and A8 of its "Do better".
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from workbench.engine.errors import WrongState
from workbench.engine.files.record import LayerRecord, PruneRecord, Record, write_record
from workbench.engine.files.retrain_config import RetrainConfig
from workbench.engine.files.sidecar import Sidecar, TensorRange, write_sidecar
from workbench.engine.flows.qat_layers import Treatment, float_reasons
from workbench.engine.flows.ranges import RangeRecorder, TapWatch
from workbench.engine.graph.layers import LayerInfo
from workbench.engine.graph.taps import Tap
from workbench.engine.modules.qat.comp_module import Factors
from workbench.engine.modules.qat.onnx_nodes import is_exporting
from workbench.engine.modules.qat.retrain_quant import RetrainQuant, data_parallel_refused
from workbench.engine.modules.sparsity.entries import selective_entries
from workbench.engine.numerics.half import to_half_precision

log = logging.getLogger("workbench.engine.flows.qat")

ATTRIBUTE = "workbench_qat"

RANGE_BATCHES = 8
"""Evaluation batches after each stretch of training whose tensor ranges are recorded."""


@dataclass
class QatState:
    """Lives on the model, so two models in one process do not disturb each other.

    ``layers``: all layers of the model. ``treatments``: what was done to each enabled one.
    ``inputs``: names of the graph's inputs. ``pruned``: the record's entries of removed channels,
    which combined compression puts before training; ``options``: of the record's sidecar.
    """

    config: RetrainConfig
    compat: bool
    record_file: str
    layers: Mapping[str, LayerInfo]
    treatments: Mapping[str, Treatment]
    taps: tuple[Tap, ...]
    inputs: tuple[str, ...]
    pruned: tuple[PruneRecord, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    stale: bool = True
    _batches: int = 0
    _recorder: RangeRecorder = field(default_factory=RangeRecorder)
    _unreliable: set[str] = field(default_factory=set)
    _watch: TapWatch | None = None
    _handles: list[RemovableHandle] = field(default_factory=list)
    _hooks: tuple[int, ...] = ()

    def attach(self, model: nn.Module) -> None:
        """Become the state of ``model``, whose evaluation then writes the record."""
        setattr(model, ATTRIBUTE, self)
        before = model.register_forward_pre_hook(self._before, with_kwargs=True)
        after = model.register_forward_hook(self._after, always_call=True)
        self._hooks = (before.id, after.id)

    def detach(self, model: nn.Module) -> None:
        """Take the state off ``model``, which may be a copy of the model it was attached to."""
        delattr(model, ATTRIBUTE)
        for number in self._hooks:
            for hooks in (
                model._forward_pre_hooks,
                model._forward_pre_hooks_with_kwargs,
                model._forward_hooks,
                model._forward_hooks_always_called,
            ):
                hooks.pop(number, None)

    @property
    def float_reasons(self) -> dict[str, str]:
        """Why each layer that is not trained stays float."""
        return float_reasons(self.layers, self.treatments)

    def ranges(self) -> dict[str, TensorRange]:
        """Of layer outputs, additions and inputs, if the model was evaluated as it is now."""
        return {} if self.stale else self._recorder.ranges(self._unreliable)

    def record(self, factors: Mapping[str, Factors], model: nn.Module) -> Record:
        """The record of these factors, in order of execution, and of what ``model`` lost."""
        order = sorted(self.treatments, key=lambda name: self.layers[name].order)
        layers = {name: self._layer_record(name, factors[name]) for name in order}
        return Record(layers=layers, prune=(*self.pruned, *selective_entries(model)))

    def _layer_record(self, name: str, found: Factors) -> LayerRecord:
        settings = self.config.layers[name]
        mode = self.config.fakequant_precision_mode
        forced = mode == "FORCE_FP16_QUANT" and not self.compat
        precision = to_half_precision if forced else float
        scales = tuple(found.scale_w.tolist())
        recurrent = () if found.scale_r is None else tuple(found.scale_r.tolist())
        return LayerRecord(
            scale_d=precision(found.scale_d),
            offset_d=found.offset_d,
            scale_w=scales,
            offset_w=(0,) * len(scales),
            act_type=settings.data.dst_type,
            wts_type=settings.weight.dst_type,
            fakequant_precision_mode=mode if forced else None,
            scale_h=None if found.scale_h is None else precision(found.scale_h),
            offset_h=found.offset_h,
            scale_r=recurrent,
            offset_r=(0,) * len(recurrent),
        )

    def write(self, record: Record, record_file: str) -> None:
        write_record(record_file, record)
        sidecar = Sidecar(compat=self.compat, ranges=self.ranges(), options=self.options)
        write_sidecar(record_file, sidecar)

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model.training or is_exporting() or torch.compiler.is_compiling():
            return
        if self.stale and self._batches >= RANGE_BATCHES:
            self._recorder, self._batches = RangeRecorder(), 0
        if self._batches >= RANGE_BATCHES:
            return
        self._batches += 1
        for name, value in (*zip(self.inputs, args, strict=False), *kwargs.items()):
            if isinstance(value, Tensor):
                self._recorder.see(f"input:{name}", value)
        self._handles = [
            layer.register_forward_hook(self._see(name)) for name, layer in wrappers(model).items()
        ]
        self._watch = TapWatch(model, self.taps, self._recorder)
        self._watch.begin()

    def _see(self, name: str) -> Any:
        def see(layer: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                with torch._C.DisableTorchFunction():
                    self._recorder.see(name, output)

        return see

    def _after(self, model: nn.Module, args: Any, output: Any) -> None:
        if is_exporting() or torch.compiler.is_compiling():
            return
        if self._watch is not None:
            self._watch.end(complete=output is not None)
            self._watch.remove()
            self._unreliable |= self._watch.unreliable
            self._watch = None
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if model.training:
            # What was recorded belongs to weights that are about to change.
            self.stale, self._batches = True, RANGE_BATCHES
        elif self.stale and output is not None:
            self._evaluated(model)

    def _evaluated(self, model: nn.Module) -> None:
        layers = wrappers(model)
        waiting = [name for name, layer in layers.items() if not layer.is_initialised()]
        if waiting:
            log.info("no record yet: %s wait for more batches", ", ".join(waiting))
            return
        self.stale = False
        if is_main_process():
            found = {name: layer.factors() for name, layer in layers.items()}
            self.write(self.record(found, model), self.record_file)


def wrappers(model: nn.Module) -> dict[str, RetrainQuant]:
    """The trained layers of a model by their path."""
    return {name: m for name, m in model.named_modules() if isinstance(m, RetrainQuant)}


def state_of(model: nn.Module) -> QatState | None:
    """The state of a model that a create or restore function returned; else None."""
    state = model.__dict__.get(ATTRIBUTE)
    return state if isinstance(state, QatState) else None


def unwrapped(function: str, model: nn.Module) -> nn.Module:
    """The model inside a DistributedDataParallel; ``RuntimeError`` for a DataParallel."""
    if isinstance(model, DataParallel):
        raise data_parallel_refused(f"{function}()")
    if isinstance(model, DistributedDataParallel):
        inner: nn.Module = model.module
        return inner
    return model


def is_main_process() -> bool:
    """Whether this process writes the files: rank 0, or there is no distributed run."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return True
    return torch.distributed.get_rank() == 0


def require_initialised(function: str, model: nn.Module, batch_num: int) -> None:
    """Raise ``WrongState`` naming the layers that have not seen ``batch_num`` batches."""
    waiting = {
        name: layer.batches_seen()
        for name, layer in wrappers(model).items()
        if not layer.is_initialised()
    }
    if waiting:
        seen = ", ".join(f"{name} ({count} of {batch_num})" for name, count in waiting.items())
        raise WrongState(
            f"the clip bounds of these layers are not found yet; batches seen: {seen}",
            where=f"{function}()",
            hint="Run the model on more batches, then on one in eval mode.",
        )
