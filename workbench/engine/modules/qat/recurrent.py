"""LSTMQAT and GRUQAT: a differentiable loop over the steps, on the layer's own parameters.

Source: specification chapter 30 sections 8 and 9, S10.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from workbench.engine.algorithms.ulq import pass_through
from workbench.engine.errors import WrongState
from workbench.engine.graph.rnn import ONNX_GATES, PARTS, hidden_states
from workbench.engine.modules.qat.onnx_nodes import is_exporting
from workbench.engine.modules.qat.operator import LayerOperator
from workbench.engine.modules.qat.operator_config import OperatorConfig
from workbench.engine.modules.qat.quantisers import WeightSettings

_X, _H, _W, _R = "acts_", "h_", "wts_", "recurrence_wts_"


class _Recurrent(LayerOperator):
    """One level, one direction. At every step the input and the hidden state are quantised, each
    between bounds of its own; the cell state of an LSTM stays as it is. Without an initial state it
    starts from zeros. An exported file has one LSTM or GRU node: of the hidden states it quantises
    the first alone.

    Without ``channel_wise`` each gate has one scale for its input and one for its recurrent weight.
    """

    weights = PARTS[:2]
    ranks = (3,)
    compute: ClassVar[Any]

    mode: str
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int

    def _obstacle(self) -> str:
        for name, only in (
            ("num_layers", 1),
            ("bidirectional", False),
            ("dropout", 0),
            ("proj_size", 0),
        ):
            if getattr(self, name) != only:
                return f"{name} is {getattr(self, name)}; allowed: {only}"
        return ""

    def _add_quantisers(self, config: OperatorConfig, device: torch.device | None) -> None:
        self.add_activation(_X, config.data, device)
        # The bounds a user gives are those of the input; a hidden state is within -1 to 1.
        clips = (None, None) if config.data.clip_max is None else (1.0, -1.0)
        hidden = replace(config.data, clip_max=clips[0], clip_min=clips[1], fixed_min=False)
        self.add_activation(_H, hidden, device)
        gates = len(ONNX_GATES[self.mode])
        scales = gates * (self.hidden_size if config.channel_wise else 1)
        settings = WeightSettings(
            trained_scales=config.trained_scales, channel_axis=0, deploy_state=True
        )
        for prefix in (_W, _R):
            self.add_weight(prefix, settings, scales, device)

    def _own_weights(self) -> dict[str, Tensor]:
        return {_W: self._rows(_W), _R: self._rows(_R)} if self.enabled else {}

    def _rows(self, prefix: str) -> Tensor:
        """The weight with one row for each of its scales."""
        weight = self.get_parameter(PARTS[0] if prefix == _W else PARTS[1])
        return weight.reshape(getattr(self, prefix + "scales").numel(), -1)

    def _quantised_weight(self, prefix: str) -> Tensor:
        quantised = self.quantise_weight(prefix, self._rows(prefix))
        return quantised.reshape(len(ONNX_GATES[self.mode]) * self.hidden_size, -1)

    def _biases(self) -> tuple[Tensor | None, Tensor | None]:
        if not self.bias:
            return None, None
        return self.get_parameter(PARTS[2]), self.get_parameter(PARTS[3])

    def _run(self, input: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Output and last state, laid out as torch lays them out."""
        if is_exporting():
            return self._recorded(input, state)
        hidden = state[0].detach()
        if not self.initialised(_H):
            parts: Any = self._flat_weights
            with torch.no_grad():
                out = type(self).compute(input, *self._arguments(state, parts))[0]
                hidden = hidden_states(self, state, out)
        x = self.quantise_activation(_X, input)
        on_grid = self.observe_activation(_H, hidden)
        projected = F.linear(x, self._quantised_weight(_W), self._biases()[0])
        recurrent = self._quantised_weight(_R)
        self._count()
        carried = tuple(part[0] for part in state)
        if not on_grid:
            carried = (pass_through(carried[0], *self.clips(_H)), *carried[1:])
        outputs = []
        for step in projected.unbind(1 if self.batch_first else 0):
            before = self.on_grid(_H, carried[0]) if on_grid else carried[0]
            gates = F.linear(before, recurrent, self._biases()[1])
            carried = self._cell(step, gates, before, *carried[1:])
            outputs.append(carried[0])
        output = torch.stack(outputs, dim=1 if self.batch_first else 0)
        return output, tuple(part[None] for part in carried)

    def _cell(
        self, projected: Tensor, gates: Tensor, hidden: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def _recorded(
        self, input: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        x = self.quantise_activation(_X, input)
        state = (self.quantise_activation(_H, state[0]), *state[1:])
        parts = [self._quantised_weight(_W), self._quantised_weight(_R)]
        parts += [bias for bias in self._biases() if bias is not None]
        output, *last = type(self).compute(x, *self._arguments(state, parts))
        return output, tuple(last)

    def _arguments(self, state: tuple[Tensor, ...], parts: list[Tensor]) -> tuple[Any, ...]:
        """What torch's own function takes behind the input."""
        first = state if len(state) > 1 else state[0]
        return first, parts, self.bias, 1, 0.0, False, False, self.batch_first

    def _initial(self, input: Tensor, given: tuple[Tensor, ...], parts: int) -> tuple[Tensor, ...]:
        self._check_input(input)
        batch = input.shape[0 if self.batch_first else 1]
        shape = (1, batch, self.hidden_size)
        if not given:
            return tuple(input.new_zeros(shape) for _ in range(parts))
        for part in given:
            if not is_exporting() and tuple(part.shape) != shape:
                raise WrongState(
                    f"hx has shape {tuple(part.shape)}; allowed: {shape}",
                    where=self._where() or type(self).__name__,
                )
        return given

    def _check_input(self, x: Tensor | PackedSequence) -> None:
        if isinstance(x, PackedSequence):
            raise WrongState(
                "a PackedSequence cannot be quantised",
                where=self._where() or type(self).__name__,
                hint="Pass the padded tensor.",
            )
        super()._check_input(x)


class LSTMQAT(_Recurrent, nn.LSTM):
    """``torch.nn.LSTM`` on quantised inputs, hidden states and weights.

    ``forward(input, hx)``: ``(T, N, C)``, or ``(N, T, C)`` with ``batch_first``; ``hx`` is None or
    two tensors ``(1, N, H)``. The result has torch's shapes.
    """

    float_class = nn.LSTM
    compute = staticmethod(torch._VF.lstm)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
            device=device,
            dtype=dtype,
        )
        self._prepare(config)

    def forward(  # type: ignore[override]
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if not self.enabled:
            plain: tuple[Tensor, tuple[Tensor, ...]] = nn.LSTM.forward(self, input, hx)
            return plain
        return self._run(input, self._initial(input, tuple(hx or ()), parts=2))

    def _cell(
        self, projected: Tensor, gates: Tensor, hidden: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        take, forget, new, give = (projected + gates).chunk(4, dim=-1)
        cell = forget.sigmoid() * rest[0] + take.sigmoid() * new.tanh()
        return give.sigmoid() * cell.tanh(), cell


class GRUQAT(_Recurrent, nn.GRU):
    """``torch.nn.GRU`` on quantised inputs, hidden states and weights.

    ``forward(input, hx)``: ``(T, N, C)``, or ``(N, T, C)`` with ``batch_first``; ``hx`` is None or
    ``(1, N, H)``. The result has torch's shapes.
    """

    float_class = nn.GRU
    compute = staticmethod(torch._VF.gru)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
        )
        self._prepare(config)

    def forward(  # type: ignore[override]
        self, input: Tensor, hx: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if not self.enabled:
            plain: tuple[Tensor, Tensor] = nn.GRU.forward(self, input, hx)
            return plain
        output, (last,) = self._run(input, self._initial(input, () if hx is None else (hx,), 1))
        return output, last

    def _cell(
        self, projected: Tensor, gates: Tensor, hidden: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        reset_x, update_x, new_x = projected.chunk(3, dim=-1)
        reset_h, update_h, new_h = gates.chunk(3, dim=-1)
        update = (update_x + update_h).sigmoid()
        new = (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh()
        return ((1 - update) * new + update * hidden,)
