"""The proof that three forms of the quantised network give the same numbers.

Source: chapter 10 D22 and section 15 (Files, 2); chapter 20 section 4; index decision 20.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from workbench.engine.errors import MissingFile, WrongState, WrongValue
from workbench.engine.events import CancelToken, Notice, OnEvent, Progress, check, emit
from workbench.engine.export.save import output_paths
from workbench.engine.export.segments import array_of, session
from workbench.engine.export.simulate import DeploySimulator, SimulatedLayer
from workbench.engine.export.torch_module import FakeQuantLayer
from workbench.engine.export.torch_rnn import FakeQuantRecurrent

ALLOWED_SHARE = 0.001
"""Share of the output's values that may differ by more than one step (index decision 20)."""

ALLOWED_SNR_DB = 60.0
"""Torch and ONNX Runtime round LayerNorm, softmax and the like differently; a value on a rounding
border then takes the neighbouring code, and the difference spreads. Against torch a pair passes as
well when all of its difference is this far below the output: a hundredth of what INT8 costs."""

ALLOWED_HALF_SNR_DB = 40.0
"""For every pair where the outputs are float16. There a step is less than the last bit of an
output, and ONNX Runtime computes what lies between the layers in float32, rounding less often than
torch does: codes at a border move (47 to 67 dB in small networks). A scale on the main path that is
2 % off gives 35 dB."""

TORCH, ONNX, DEPLOY = "torch fake-quant", "ONNX fake-quant", "deploy (integer simulation)"

Array = NDArray[Any]


@dataclass(frozen=True)
class Parity:
    """How far apart the outputs of two forms are, over all batches and outputs.

    ``max_abs`` in the output's unit; ``max_steps`` in output quantisation steps, one step being the
    largest scale_d·scale_w of the last quantised layer. ``snr_db`` is the output's power over that
    of the difference, in decibel. ``first_layer`` is the first quantised layer, in execution order,
    whose output differs by more than one of its own steps; it is only searched for when ``ok`` is
    False or an output differs by more than one step.
    """

    left: str
    right: str
    max_abs: float
    max_steps: float
    share_beyond_one_step: float
    snr_db: float
    first_layer: str | None
    ok: bool


@dataclass
class _Pair:
    left: str
    right: str
    step: float
    max_abs: float = 0.0
    beyond: int = 0
    total: int = 0
    signal: float = 0.0
    noise: float = 0.0
    worst: int | None = None
    finite: bool = True
    half: bool = False

    def add(self, batch: int, left: Sequence[Array], right: Sequence[Array]) -> None:
        for a, b in zip(left, right, strict=True):
            if a.shape != b.shape:
                raise WrongState(
                    f"the output of {self.left} has shape {a.shape}, that of {self.right} {b.shape}"
                )
            difference = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))
            self.finite &= bool(np.isfinite(difference).all())
            self.half |= a.dtype == np.float16
            largest = float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0))
            beyond = int((~(difference <= self.step)).sum())
            if beyond and (self.worst is None or largest > self.max_abs):
                self.worst = batch
            self.max_abs = max(self.max_abs, largest)
            self.beyond += beyond
            self.signal += float(np.square(a, dtype=np.float64).sum())
            self.noise += float(np.square(difference).sum())
            self.total += difference.size

    @property
    def share(self) -> float:
        return self.beyond / max(self.total, 1)

    @property
    def snr_db(self) -> float:
        if self.noise == 0.0:
            return math.inf
        return 10.0 * math.log10(max(self.signal, 1e-300) / self.noise)

    @property
    def ok(self) -> bool:
        if not self.finite:
            return False
        if self.share <= ALLOWED_SHARE:
            return True
        if self.half:
            return self.snr_db >= ALLOWED_HALF_SNR_DB
        return self.left == TORCH and self.snr_db >= ALLOWED_SNR_DB


@dataclass
class _Forms:
    """The three forms, each as a function of one batch."""

    module: nn.Module
    fake_quant: str
    simulator: DeploySimulator
    names: tuple[str, ...] = ()
    _session: Any = field(default=None)

    @property
    def session(self) -> Any:
        if self._session is None:
            self._session = session(self.fake_quant)
        return self._session

    def run(self, batch: tuple[Any, ...]) -> dict[str, list[Array]]:
        feed = _feed(batch, self.session.get_inputs())
        integer = self.simulator.run(feed)
        return {
            TORCH: _torch_outputs(self.module, batch),
            ONNX: list(self.session.run(list(self.simulator.output_names), feed)),
            DEPLOY: [integer[name] for name in self.simulator.output_names],
        }

    def layer_outputs(self, batch: tuple[Any, ...]) -> dict[str, Mapping[str, Array]]:
        feed = _feed(batch, self.session.get_inputs())
        layers = self.simulator.layers
        with _recorded(self.module) as seen:
            _torch_outputs(self.module, batch)
        return {
            TORCH: seen,
            ONNX: _onnx_layer_outputs(self.fake_quant, layers, feed),
            DEPLOY: self.simulator.run(feed, taps=True),
        }


def verify_export(
    fake_quant_module: nn.Module,
    save_path: str,
    inputs: Sequence[tuple[Any, ...]],
    *,
    on_event: OnEvent | None = None,
    cancel: CancelToken | None = None,
) -> tuple[Parity, ...]:
    """Compare the torch module, the fake-quant file and the simulated deploy file on ``inputs``.

    ``fake_quant_module`` comes from ``to_fake_quant``; ``save_path`` is what ``save_model`` got;
    each element of ``inputs`` is a tuple of positional inputs, a trailing dict being keyword
    arguments. Returns torch against ONNX, ONNX against deploy, torch against deploy.
    A ``Notice`` names every layer with accumulators that do not fit in int32 (D22).
    Raises ``FileNotFoundError`` when a file is missing and ``ValueError`` for no input.
    """
    paths = output_paths(save_path)
    for path in (paths.fake_quant, paths.deploy):
        if not path.is_file():
            raise MissingFile(f"there is no {path}", hint="Export the model first.")
    if not inputs:
        raise WrongValue("no batch was given", where="inputs", hint="Pass at least one batch.")
    forms = _Forms(fake_quant_module, str(paths.fake_quant), DeploySimulator(paths.deploy))
    step = forms.simulator.layers[-1].step
    pairs = [_Pair(a, b, step) for a, b in ((TORCH, ONNX), (ONNX, DEPLOY), (TORCH, DEPLOY))]
    for number, batch in enumerate(inputs):
        check(cancel)
        emit(on_event, Progress("compare the exported files", number, len(inputs)))
        outputs = forms.run(batch)
        for pair in pairs:
            pair.add(number, outputs[pair.left], outputs[pair.right])
    emit(on_event, Progress("compare the exported files", len(inputs), len(inputs)))
    for name, count in forms.simulator.overflows.items():
        emit(
            on_event,
            Notice(
                f"layer {name}: {count} accumulators do not fit in int32; skip it in the config"
            ),
        )
    traces: dict[int, dict[str, Mapping[str, Array]]] = {}
    return tuple(_judge(pair, forms, inputs, traces, cancel) for pair in pairs)


def _judge(
    pair: _Pair,
    forms: _Forms,
    inputs: Sequence[tuple[Any, ...]],
    traces: dict[int, dict[str, Mapping[str, Array]]],
    cancel: CancelToken | None,
) -> Parity:
    first = None
    if pair.worst is not None:
        check(cancel)
        if pair.worst not in traces:
            traces[pair.worst] = forms.layer_outputs(inputs[pair.worst])
        found = traces[pair.worst]
        first = _first_difference(forms.simulator.layers, found[pair.left], found[pair.right])
    return Parity(
        pair.left,
        pair.right,
        pair.max_abs,
        pair.max_abs / pair.step,
        pair.share,
        pair.snr_db,
        first,
        pair.ok,
    )


def _first_difference(
    layers: Sequence[SimulatedLayer], left: Mapping[str, Array], right: Mapping[str, Array]
) -> str | None:
    for layer in layers:
        if layer.name not in left or layer.name not in right:
            continue
        a, b = left[layer.name], right[layer.name]
        if a.shape != b.shape:
            return layer.name
        difference = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))
        if not bool((difference <= layer.step).all()):
            return layer.name
    return None


def _feed(batch: tuple[Any, ...], inputs: Sequence[Any]) -> dict[str, Array]:
    """ONNX inputs of one batch: tensors of the positional arguments, then of the keywords."""
    tensors = list(_tensors(batch))
    if len(tensors) != len(inputs):
        names = ", ".join(meta.name for meta in inputs)
        raise WrongValue(
            f"a batch holds {len(tensors)} tensors; the file has the inputs {names}",
            where="inputs",
        )
    return {m.name: array_of(t, m.type) for m, t in zip(inputs, tensors, strict=True)}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _torch_outputs(module: nn.Module, batch: tuple[Any, ...]) -> list[Array]:
    keywords = batch[-1] if batch and isinstance(batch[-1], dict) else {}
    positional = batch[:-1] if keywords or (batch and isinstance(batch[-1], dict)) else batch
    with torch.no_grad():
        result = module(*positional, **keywords)
    return [t.detach().cpu().numpy() for t in _tensors(result)]


@contextmanager
def _recorded(module: nn.Module) -> Iterator[dict[str, Array]]:
    """Outputs of all quantised layers of the module while it runs."""
    seen: dict[str, Array] = {}

    def keep(layer: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(layer, FakeQuantRecurrent):
            # As the files lay it out: (length, directions, batch, hidden).
            sequence = output[0].transpose(0, 1) if layer.batch_first else output[0]
            output = sequence.unsqueeze(1)
        seen[str(layer.name)] = output.detach().cpu().numpy()

    wrappers = (FakeQuantLayer, FakeQuantRecurrent)
    layers = [m for m in module.modules() if isinstance(m, wrappers)]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _onnx_layer_outputs(
    path: str, layers: Sequence[SimulatedLayer], feed: Mapping[str, Array]
) -> dict[str, Array]:
    model = onnx.load(path)
    makers = {node.name: node.output[0] for node in model.graph.node}
    outputs = {}
    for layer in layers:
        name = makers.get(f"{layer.name}.fakedequant.cast") or makers.get(
            f"{layer.name}.fakedequant.mul"
        )
        if name is None:
            # An LSTM or GRU keeps its node, and so its name.
            name = makers.get(layer.name)
        if name is not None:
            outputs[layer.name] = name
    present = {o.name for o in model.graph.output}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=n) for n in outputs.values() if n not in present
    )
    values = session(model).run(list(outputs.values()), dict(feed))
    return dict(zip(outputs, values, strict=True))
