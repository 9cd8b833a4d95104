"""LSTM and GRU: their gates in torch's and in ONNX's order, their weights, their initial state.

Source: chapter 10 section 6.4. torch keeps the gates of an LSTM as (i, f, g, o) and of a GRU as
(r, z, n); ONNX and the record file as (i, o, f, c) and (z, r, h).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

RNN_TYPES = ("LSTM", "GRU")

ONNX_GATES: Mapping[str, tuple[int, ...]] = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
"""Position in torch of each gate in ONNX's order."""

PARTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
"""Parameters of a layer that can be quantised; without the biases when it has none."""


def gate_rows(kind: str, hidden: int) -> list[int]:
    """For each row of a weight in ONNX's order, its row in torch's; ``hidden`` rows a gate."""
    return [gate * hidden + row for gate in ONNX_GATES[kind] for row in range(hidden)]


def to_onnx_order(kind: str, values: Tensor) -> Tensor:
    """``values`` with one row a gate and unit on axis 0, from torch's order to ONNX's."""
    return values[gate_rows(kind, values.shape[0] // len(ONNX_GATES[kind]))]


def from_onnx_order(kind: str, values: Tensor) -> Tensor:
    """The inverse of ``to_onnx_order``."""
    rows = torch.tensor(gate_rows(kind, values.shape[0] // len(ONNX_GATES[kind])))
    return values[torch.argsort(rows)]


def joined_weight(layer: nn.Module) -> Tensor:
    """Input and recurrent weight side by side, torch's gate order: ``(gates*H, inputs + H)``.

    This is the one tensor that stands for an LSTM's or GRU's weight wherever a layer has one.
    """
    parts = [layer.get_parameter(name).detach() for name in PARTS[:2]]
    return torch.cat(parts, dim=1)


def joined_shape(layer: nn.LSTM | nn.GRU) -> tuple[int, int]:
    """The shape of ``joined_weight``: of the first level and direction, where there are more."""
    rows = len(ONNX_GATES[layer.mode]) * layer.hidden_size
    return rows, layer.input_size + layer.hidden_size


def split_weight(joined: Tensor, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """The inverse of ``joined_weight``: ``(gates*H, inputs)`` and ``(gates*H, H)``."""
    columns = layer.get_parameter(PARTS[0]).shape[1]
    return joined[:, :columns].contiguous(), joined[:, columns:].contiguous()


def set_joined_weight(layer: nn.Module, joined: Tensor) -> None:
    """Replace both weights; the layer's old parameters are not written to."""
    for name, part in zip(PARTS[:2], split_weight(joined, layer), strict=True):
        # RNNBase keeps a second list of its parameters, which only setattr renews.
        setattr(layer, name, nn.Parameter(part, requires_grad=False))


def initial_state(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The state a call was given: (h,), (h, c), or () when it had none."""
    given = args[1] if len(args) > 1 else kwargs.get("hx")
    if given is None:
        return ()
    return (given,) if isinstance(given, Tensor) else tuple(given)


def hidden_states(layer: nn.Module, state: tuple[Tensor, ...], out: Tensor) -> Tensor:
    """What the recurrent weight is multiplied with, step by step: the initial state, then the
    outputs without the last, laid out as ``out``."""
    if layer.batch_first:
        return torch.cat([state[0].transpose(0, 1), out[:, :-1]], dim=1)
    return torch.cat([state[0], out[:-1]], dim=0)
