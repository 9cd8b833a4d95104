"""The quantised network as a torch module: what calibration's metric is measured on.

Source: chapter 20 section 4 and chapter 10 section 13.4. The arithmetic is that of the fake-quant
file: integer codes held in float32, the layer's own operator, one multiplication at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.engine.algorithms.dmq import balance_weight, inverse_balance
from workbench.engine.errors import WrongState
from workbench.engine.export.arithmetic import (
    FloatArray,
    bias_codes,
    dequant_scale,
    weight_codes,
)
from workbench.engine.export.torch_rnn import FakeQuantRecurrent
from workbench.engine.files.record import LayerRecord, Record
from workbench.engine.graph.copying import copy_model
from workbench.engine.numerics.integer import int_range, reciprocal

_CONVOLUTIONS: Mapping[str, Callable[..., Tensor]] = {
    "Conv1d": F.conv1d,
    "Conv2d": F.conv2d,
    "Conv3d": F.conv3d,
}
_TRANSPOSED: Mapping[str, Callable[..., Tensor]] = {
    "ConvTranspose1d": F.conv_transpose1d,
    "ConvTranspose2d": F.conv_transpose2d,
}
_WEIGHT_AXIS = {
    **dict.fromkeys(_CONVOLUTIONS, 0),
    "Linear": 0,
    **dict.fromkeys(_TRANSPOSED, 1),
}
"""Stored axis of the output channels of each type with a weight."""


class FakeQuantLayer(nn.Module):
    """A layer computed on integer codes.

    ``y = Op(clamp(RNE(x / scale_d) + o) - o; W_q, b_q) * (scale_d * scale_w)``, in float32 whatever
    the input's dtype, and cast back to it. Attributes that this wrapper does not have (``weight``,
    ``in_features``, ...) are those of the wrapped layer ``inner``.
    """

    workbench_wrapper = True
    codes: Tensor | None
    bias_codes: Tensor | None
    balance: Tensor | None
    deq: Tensor

    def __init__(
        self,
        inner: nn.Module,
        name: str,
        record: LayerRecord,
        *,
        weight: Tensor | None = None,
        bias_before_dequant: bool = False,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.name = name
        self.bias_before_dequant = bias_before_dequant
        self.inner_type = _layer_type(inner)
        if not self.inner_type:
            raise WrongState(
                f"a {type(inner).__name__} cannot be quantised; allowed: "
                f"{', '.join((*_WEIGHT_AXIS, 'AvgPool2d'))}",
                where=f"layer {name}",
            )
        if record.scale_d is None or record.offset_d is None or not record.scale_w:
            raise WrongState(
                "the record holds no activation scale or no weight scale for it",
                where=f"layer {name}",
                hint="Run the calibration with all of its batches first.",
            )
        scale_w = np.asarray(record.scale_w, np.float32)
        low, high = int_range(record.act_bits)
        self.inverse_scale = reciprocal(record.scale_d)
        # Rounded values are integers, so clamping after adding the offset and subtracting it again
        # is the same as clamping to shifted bounds: two passes over the data less.
        self.low = low - int(record.offset_d)
        self.high = high - int(record.offset_d)
        force = record.fakequant_precision_mode == "FORCE_FP16_QUANT"
        deq = dequant_scale(record.scale_d, scale_w, force_fp16=force)
        device = next((p.device for p in inner.parameters()), None)
        self._bias_error: WrongState | None = None
        for name in ("codes", "bias_codes", "balance"):
            self.register_buffer(name, None, persistent=False)
        if self.inner_type in _WEIGHT_AXIS:
            self._make_codes(record, scale_w, device, weight)
        axes = 2 if self.codes is None else self.codes.dim() - 2
        shape = (-1,) if self.inner_type == "Linear" else (1, -1, *[1] * axes)
        self._constant("deq", deq.reshape(shape), device)
        factors = record.tensor_balance_factor
        if factors:
            inverse = inverse_balance(factors, self.inner_type, inner.get_parameter("weight").dim())
            self._constant("balance", inverse.numpy(), device)

    def _make_codes(
        self,
        record: LayerRecord,
        scale_w: FloatArray,
        device: torch.device | None,
        tuned: Tensor | None,
    ) -> None:
        inner: Any = self.inner
        given = inner.weight if tuned is None else tuned
        weight = given.detach().float().cpu().numpy()
        groups = getattr(inner, "groups", 1)
        axis = _WEIGHT_AXIS[self.inner_type]
        channels = weight.shape[0] if axis == 0 else weight.shape[1] * groups
        if scale_w.size not in (1, channels):
            raise WrongState(
                f"scale_w has {scale_w.size} values; allowed: 1 or {channels}",
                where=f"layer {self.name}",
            )
        if record.tensor_balance_factor and tuned is None:
            factors = torch.tensor(record.tensor_balance_factor)
            weight = balance_weight(
                torch.from_numpy(weight), factors, transposed=axis == 1, groups=groups
            ).numpy()
        codes = weight_codes(weight, scale_w, record.wts_bits, axis=axis, groups=groups)
        self._constant("codes", codes, device)
        if inner.bias is None:
            return
        bias = inner.bias.detach().float().cpu().numpy()
        try:
            integers = bias_codes(bias, record.scale_d or 0.0, scale_w, layer=self.name)
            self._constant("bias_codes", integers.astype(np.float32), device)
        except WrongState as error:
            if self.inner_type != "Linear":
                raise
            # A Linear on more than two dimensions keeps its float bias; forward raises otherwise.
            self._bias_error = error

    def _constant(self, name: str, array: FloatArray, device: torch.device | None) -> None:
        tensor = torch.from_numpy(np.ascontiguousarray(array, np.float32))
        self.register_buffer(name, tensor.to(device) if device else tensor, persistent=False)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "inner":
                raise
            return getattr(super().__getattr__("inner"), name)

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # Named as torch's layers name it: a model may pass it by keyword (D3).
        x = input
        data = x if self.balance is None else x * self.balance.to(x.dtype)
        q = torch.mul(data.float(), self.inverse_scale)
        q.round_().clamp_(self.low, self.high)
        y = self._compute(q, *args, **kwargs).mul_(self.deq)
        y = y if x.dtype == torch.float32 else y.to(x.dtype)
        late = self._late_bias(x)
        return y if late is None else y.add_(late)

    def _late_bias(self, x: Tensor) -> Tensor | None:
        """The float bias that is added after the multiplication.

        A Linear on more than two dimensions is exported as MatMul and Add, whose bias stays float
        in the model's own data type (D21).
        """
        if self.inner_type != "Linear" or x.dim() == 2 or self.bias_before_dequant:
            return None
        bias = self.inner.bias
        return bias.detach().to(x.dtype) if isinstance(bias, Tensor) else None

    def _compute(self, q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's own operator on codes: integers, before the multiplication."""
        inner: Any = self.inner
        kind = self.inner_type
        if kind == "AvgPool2d":
            pooled: Tensor = inner(q)
            return pooled
        assert self.codes is not None
        if kind in _CONVOLUTIONS:
            return _CONVOLUTIONS[kind](
                q,
                self.codes,
                self.bias_codes,
                inner.stride,
                inner.padding,
                inner.dilation,
                inner.groups,
            )
        if kind in _TRANSPOSED:
            return self._transposed(q, *args, **kwargs)
        if q.dim() == 2 or self.bias_before_dequant:
            if self._bias_error is not None:
                raise self._bias_error
            return F.linear(q, self.codes, self.bias_codes)
        return F.linear(q, self.codes)

    def _transposed(self, q: Tensor, output_size: list[int] | None = None) -> Tensor:
        inner: Any = self.inner
        padding = inner.output_padding
        if output_size is not None:
            padding = inner._output_padding(
                q,
                output_size,
                inner.stride,
                inner.padding,
                inner.kernel_size,
                q.dim() - 2,
                inner.dilation,
            )
        assert self.codes is not None
        return _TRANSPOSED[self.inner_type](
            q,
            self.codes,
            self.bias_codes,
            inner.stride,
            inner.padding,
            padding,
            inner.groups,
            inner.dilation,
        )

    def extra_repr(self) -> str:
        return f"{self.name}, codes in [{self.low}, {self.high}] after the offset"


def _layer_type(module: nn.Module) -> str:
    """The handled type that ``module`` is or derives from; empty when it is none."""
    for kind in (*_WEIGHT_AXIS, "AvgPool2d"):
        if isinstance(module, getattr(nn, kind)):
            return kind
    return ""


def to_fake_quant(
    module: nn.Module,
    record: Record,
    names: Collection[str] | None = None,
    *,
    weights: Mapping[str, Tensor] | None = None,
    bias_before_dequant: bool = False,
) -> nn.Module:
    """A new module tree in which every recorded layer is a ``FakeQuantLayer``
    or, for LSTM and GRU, a ``FakeQuantRecurrent``.

    ``module`` is a float module with batch norms already folded; parameters are shared with the
    result and never written. ``names`` limits the wrapping to some of the recorded layers.
    ``weights``: by layer, the fake-quantised weight (``Calibration.fake_weights``) where rounding
    to the nearest is not what was decided. ``bias_before_dequant``: as in ``save_model`` (D21).
    Raises ``RuntimeError`` for a recorded layer that the module does not have, or an incomplete
    entry.
    """
    wanted = [n for n in record.layers if names is None or n in names]
    root = copy_model(module)
    modules = dict(root.named_modules(remove_duplicate=False))
    replaced: dict[int, nn.Module] = {}
    for name in wanted:
        layer = modules.get(name)
        if layer is None or not name:
            raise WrongState(
                "the record names it, but the model has no module of that name",
                where=f"layer {name!r}",
                hint="Use the record that was calibrated from this model.",
            )
        if isinstance(layer, nn.RNNBase):
            replaced[id(layer)] = FakeQuantRecurrent(
                layer, name, record.layers[name], weight=(weights or {}).get(name)
            )
            continue
        replaced[id(layer)] = FakeQuantLayer(
            layer,
            name,
            record.layers[name],
            weight=(weights or {}).get(name),
            bias_before_dequant=bias_before_dequant,
        )
    for parent in list(modules.values()):
        for key, child in parent._modules.items():
            if child is not None and id(child) in replaced:
                parent._modules[key] = replaced[id(child)]
    return root
