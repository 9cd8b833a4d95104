"""LSTM and GRU in the quantised torch module.

Source: chapter 20 section 4 ("Do better") and chapter 10 section 13.4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.engine.errors import WrongState
from workbench.engine.export.arithmetic import (
    FloatArray,
    bias_codes,
    dequant_scale,
    weight_codes,
)
from workbench.engine.files.record import LayerRecord
from workbench.engine.graph.copying import copy_model
from workbench.engine.graph.rnn import (
    ONNX_GATES,
    PARTS,
    from_onnx_order,
    joined_weight,
    split_weight,
)
from workbench.engine.numerics.integer import int_range, reciprocal


class FakeQuantRecurrent(nn.Module):
    """An LSTM or GRU computed as the fake-quant file does.

    Input and initial hidden state are rounded to their grids; weights and biases are integer codes
    times their scales. Between two steps the state is a float, and the cell state always is.
    Attributes that this wrapper does not have are those of the layer ``inner``. Without an initial
    state it starts from zeros. ``weight``: the fake-quantised weights side by side
    (``graph.rnn.joined_weight``) where something else than rounding to nearest was decided.
    """

    workbench_wrapper = True

    def __init__(
        self, inner: nn.Module, name: str, record: LayerRecord, *, weight: Tensor | None = None
    ) -> None:
        super().__init__()
        self.inner = inner
        self.name = name
        self.inner_type = type(inner).__name__
        self._check(record)
        self.low, self.high = int_range(record.act_bits)
        self.grids = (
            (float(np.float32(record.scale_d or 0.0)), int(record.offset_d or 0)),
            (float(np.float32(record.scale_h or 0.0)), int(record.offset_h or 0)),
        )
        self.twin = copy_model(inner)
        joined = joined_weight(inner) if weight is None else weight.detach()
        scales = (record.scale_w, record.scale_r)
        force = record.fakequant_precision_mode == "FORCE_FP16_QUANT"
        halves = zip(split_weight(joined, inner), scales, self.grids, strict=True)
        for index, (part, scale, (step, _)) in enumerate(halves):
            ordered = self._rows(scale)
            deq = dequant_scale(step, ordered, force_fp16=force)
            codes = weight_codes(part.float().cpu().numpy(), ordered, record.wts_bits, axis=0)
            factor = (deq / np.float32(step)).astype(np.float32)
            self._set(PARTS[index], codes * factor.reshape(-1, 1))
            bias = getattr(inner, PARTS[2 + index], None)
            if isinstance(bias, Tensor):
                values = bias.detach().float().cpu().numpy()
                integers = bias_codes(values, step, ordered, layer=name)
                self._set(PARTS[2 + index], integers * deq)

    def _check(self, record: LayerRecord) -> None:
        where = f"layer {self.name}"
        if not isinstance(self.inner, nn.LSTM | nn.GRU):
            raise WrongState(f"a {self.inner_type} is no LSTM or GRU", where=where)
        missing = [
            field
            for field in ("scale_d", "offset_d", "scale_h", "offset_h", "scale_w", "scale_r")
            if getattr(record, field) in (None, ())
        ]
        if missing:
            raise WrongState(
                f"the record has no {', '.join(missing)} for it",
                where=where,
                hint="Run the calibration with all of its batches first.",
            )
        rows = len(ONNX_GATES[self.inner_type]) * self.inner.hidden_size
        for field in ("scale_w", "scale_r"):
            if len(getattr(record, field)) not in (1, rows):
                raise WrongState(
                    f"{field} has {len(getattr(record, field))} values; allowed: 1 or {rows}",
                    where=where,
                )

    def _rows(self, scales: tuple[float, ...]) -> FloatArray:
        """The record's scales in torch's gate order."""
        values = torch.tensor(scales, dtype=torch.float32)
        if values.numel() > 1:
            values = from_onnx_order(self.inner_type, values)
        return np.asarray(values.numpy(), np.float32)

    def _set(self, name: str, array: Any) -> None:
        old = self.twin.get_parameter(name)
        value = torch.from_numpy(np.ascontiguousarray(array, np.float32))
        fresh = nn.Parameter(value.to(old.device, old.dtype), requires_grad=False)
        # RNNBase keeps a second list of its parameters, which only setattr renews.
        setattr(self.twin, name, fresh)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "inner":
                raise
            return getattr(super().__getattr__("inner"), name)

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        x = self._rounded(input, *self.grids[0])
        if hx is None:
            return self.twin(x)
        if isinstance(hx, Tensor):
            return self.twin(x, self._rounded(hx, *self.grids[1]))
        hidden, *cell = hx
        return self.twin(x, (self._rounded(hidden, *self.grids[1]), *cell))

    def _rounded(self, x: Tensor, scale: float, offset: int) -> Tensor:
        codes = (x.float() * reciprocal(scale)).round_()
        return codes.clamp_(self.low - offset, self.high - offset).mul_(scale).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.name}, input and hidden scales {self.grids[0][0]:g}, {self.grids[1][0]:g}"
