"""Minima and maxima of the tensors that are no layer's input: layer outputs, residual adds, inputs.

A fused int8 file needs them (decision 12). They are seen while the calibration batches run anyway.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from workbench.engine.algorithms.batch import Extremes
from workbench.engine.files.sidecar import TensorRange
from workbench.engine.graph.clamped import Clamped
from workbench.engine.graph.taps import Tap

log = logging.getLogger("workbench.engine.flows.ranges")

_OPERATORS: Mapping[Any, str] = {
    torch.add: "add",
    torch.Tensor.add: "add",
    torch.Tensor.add_: "add",
    torch.Tensor.__add__: "add",
    torch.Tensor.__radd__: "add",
    torch.Tensor.__iadd__: "add",
    torch.cat: "cat",
    torch.concat: "cat",
    torch.concatenate: "cat",
    # What an exported program is rebuilt with.
    torch.ops.aten.add.Tensor: "add",
    torch.ops.aten.add_.Tensor: "add",
    torch.ops.aten.cat.default: "cat",
}


class RangeRecorder:
    """Running minimum and maximum by key, and the extremes of a batch for the layers that read it.

    ``readers``: layer -> what its input is.
    """

    def __init__(self, readers: Mapping[str, Clamped] | None = None) -> None:
        self._readers = readers or {}
        self._bounds: dict[str, Extremes] = {}
        self._batch: dict[str, tuple[torch.Size, Extremes]] = {}

    def begin(self) -> None:
        """Forget the extremes of the batch before."""
        self._batch.clear()

    def see(self, key: str, value: Tensor) -> None:
        if value.numel() == 0 or not value.is_floating_point():
            return
        low, high = torch.aminmax(value.detach())
        self._batch[key] = value.shape, (low, high)
        known = self._bounds.get(key)
        if known is not None:
            low, high = torch.minimum(low, known[0]), torch.maximum(high, known[1])
        self._bounds[key] = (low, high)

    def extremes_of(self, layer: str, value: Tensor) -> Extremes | None:
        """Those of a layer's input ``value``, if they follow from what this batch has shown."""
        clamped = self._readers.get(layer)
        shape, extremes = self._batch.get(clamped.key if clamped else "", (None, None))
        if clamped is None or extremes is None or shape != value.shape:
            return None
        return clamped(extremes[0]), clamped(extremes[1])

    def ranges(self, drop: Collection[str] = ()) -> dict[str, TensorRange]:
        return {
            key: TensorRange(float(low), float(high))
            for key, (low, high) in self._bounds.items()
            if key not in drop
        }


def with_input_names(
    ranges: Mapping[str, TensorRange], names: Sequence[str], given: Sequence[str] | None
) -> dict[str, TensorRange]:
    """Ranges with the graph's inputs under the names that they have in the ONNX files."""
    renamed = {f"input:{old}": f"input:{new}" for old, new in zip(names, given or (), strict=False)}
    return {renamed.get(key, key): value for key, value in ranges.items()}


class TapWatch:
    """Finds the captured graph's adds and concatenations again in a forward of the module tree.

    The n-th ``add`` of two tensors that code of module ``scope`` executes is number n of that
    scope. Where a forward executes fewer than were captured, the scope's ranges are dropped.
    """

    def __init__(self, model: nn.Module, taps: Sequence[Tap], recorder: RangeRecorder) -> None:
        self._keys = {(tap.scope, tap.op, tap.ordinal): tap.key for tap in taps}
        self._expected = {(tap.scope, tap.op): tap.ordinal + 1 for tap in taps}
        self._recorder = recorder
        self._stack: list[str] = []
        self._seen: Counter[tuple[str, str]] = Counter()
        self.unreliable: set[str] = set()
        self._mode = _TapMode(self)
        self._handles: list[RemovableHandle] = []
        if self._keys:
            for name, module in model.named_modules():
                if _adds_nothing(module):
                    continue
                self._handles += [
                    module.register_forward_pre_hook(self._enter(name)),
                    module.register_forward_hook(self._leave, always_call=True),
                ]

    def _enter(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any) -> None:
            self._stack.append(name)

        return enter

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._stack:
            self._stack.pop()

    def run(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.begin()
        complete = False
        try:
            output = forward(*args, **kwargs)
            complete = True
        finally:
            self.end(complete=complete)
        return output

    def begin(self) -> None:
        """Watch from here; the forward of the model is about to run."""
        if not self._keys:
            return
        # The root's own hook has run by now, unless its forward was called directly.
        self._stack[:] = [""]
        self._seen.clear()
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    def end(self, *, complete: bool) -> None:
        """Stop watching; ``complete``: the forward came to its end."""
        if self._keys:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if not complete:
            return
        for place, count in self._expected.items():
            if self._seen[place] < count:
                scope, op = place
                lost = {key for (s, o, _), key in self._keys.items() if (s, o) == place}
                if not lost <= self.unreliable:
                    log.warning(
                        "%s executed %d %s, fewer than captured; their ranges are not used",
                        scope or "the model",
                        self._seen[place],
                        op,
                    )
                self.unreliable |= lost

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    def see(self, op: str, args: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor) or not self._stack:
            return
        if op == "add":
            left, right = args[0], args[1] if len(args) > 1 else None
            if not (isinstance(left, Tensor) and isinstance(right, Tensor)):
                return
        scope = self._stack[-1]
        ordinal = self._seen[scope, op]
        self._seen[scope, op] += 1
        key = self._keys.get((scope, op, ordinal))
        if key is not None:
            self._recorder.see(key, output)


def _adds_nothing(module: nn.Module) -> bool:
    """Whether it is one of torch's own leaves, which neither add nor concatenate by these names."""
    return type(module).__module__.startswith("torch.nn.modules.") and not any(module.children())


class _TapMode(TorchFunctionMode):
    def __init__(self, watch: TapWatch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        op = _OPERATORS.get(func)
        if op is not None:
            other = (kwargs or {}).get("other")
            self._watch.see(op, args if other is None else (*args, other), output)
        return output
