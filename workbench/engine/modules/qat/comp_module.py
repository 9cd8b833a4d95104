"""A layer of a graph-mode model with quantisers around it; it takes the layer's place.

Source: specification chapter 30 section 4 and its "Do better".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.algorithms.ulq import ulq_activation
from workbench.engine.algorithms.weight_training import fake_quantize_blocks
from workbench.engine.errors import WrongState
from workbench.engine.modules.qat.onnx_nodes import is_exporting
from workbench.engine.modules.qat.quantisers import (
    ActivationSettings,
    QuantisingModule,
    WeightSettings,
)
from workbench.engine.numerics.integer import SMALLEST_NORMAL

_ACTS, _WTS = "acts_", "wts_"
_MOST_COUNTED = 100
"""Where the reference stops counting forwards."""

_OF_THE_REFERENCE = ("wts_offsets", "wts_mask", "cur_batch", "prune_cur_batch", "s_rec_flag")
"""State that its checkpoints hold beside ours."""


@dataclass(frozen=True)
class Factors:
    """What a record and a float file need of a layer: everything with its batch norm folded in.

    ``scale_w``: float32 ``(Cout,)`` or ``(1,)``. ``weight``: values on the grid of ``scale_w``.
    The last three are those of an LSTM's or GRU's hidden state and recurrent weight.
    """

    scale_d: float
    offset_d: int
    scale_w: Tensor
    weight: Tensor
    scale_h: float | None = None
    offset_h: int | None = None
    scale_r: Tensor | None = None


class CompModule(QuantisingModule):
    """A convolution, transposed convolution or Linear that sees quantised input and weight.

    ``replaced_module`` is the original layer; its parameters are the trained ones. ``share`` makes
    the input quantiser of another layer, which reads the same tensor, the layer's own.
    """

    def __init__(
        self, layer: nn.Module, name: str, activation: ActivationSettings, weight: WeightSettings
    ) -> None:
        super().__init__()
        self.layer_name = name
        self.replaced_module = layer
        device = self._weight().device
        self.add_activation(_ACTS, activation, device)
        stored = self._weight().shape
        channels = stored[1] * weight.groups if weight.channel_axis == 1 else stored[0]
        self.add_weight(_WTS, weight, 1 if weight.channel_axis is None else channels, device)
        # In a tuple, so that the owner is no child: parameters(), state_dict() and copies of this
        # module stay its own, while a copy of the whole model keeps the two together.
        self._owner: tuple[CompModule, ...] = ()
        self.leads = True
        self.train(layer.training)

    def share(self, owner: CompModule) -> None:
        """Use the input quantiser of ``owner``; the state of this module's own goes."""
        self._owner = (owner,)
        state = [*self._parameters, *self._buffers]
        for name in state:
            if name.startswith(_ACTS):
                delattr(self, name)
        del self._activations[_ACTS]

    @property
    def activation_owner(self) -> CompModule:
        return self._owner[0] if self._owner else self

    def forward(self, input: Tensor, *args: Any, sign: Tensor | None = None, **kw: Any) -> Any:
        """``sign``: ``(Cout,)``, -1 where the batch norm after a convolution turns a channel over.

        The weight then has the grid of its folded form, whose two ends differ (A5).
        """
        x = self._quantised(input)
        weight = self._weight()
        if sign is None:
            quantised = self.quantise_weight(_WTS, weight)
        else:
            turn = self._along_channels(sign.to(weight.dtype))
            quantised = self.quantise_weight(_WTS, weight * turn) * turn
        # The layer's own forward: its hooks, arguments and arithmetic stay as they are.
        return torch.func.functional_call(
            self.replaced_module, {"weight": quantised}, (x, *args), kw
        )

    def factors(self, turned: Tensor | None = None) -> Factors:
        """The factors that the parameters give now.

        ``turned``: ``(Cout,)`` float64, what a batch norm after a convolution multiplies each
        channel with.
        """
        scale, offset = self.activation_owner.final_activation_factors(_ACTS)
        weight = self._weight().detach()
        settings = self._weights[_WTS].settings
        if turned is not None:
            # As in forward; what is found is the folded weight over the channel's |turned|.
            sign = torch.where(turned < 0, -1.0, 1.0).to(weight.dtype)
            weight = weight * self._along_channels(sign)
        scales = self.weight_factors(_WTS, weight)
        fake = fake_quantize_blocks(
            weight, scales, settings.bits, settings.channel_axis, settings.groups
        )
        if turned is not None:
            fake = (fake.double() * self._along_channels(turned.abs())).to(torch.float32)
            scales = (scales.double() * turned.abs()).to(torch.float32)
            scales = scales.masked_fill(scales < SMALLEST_NORMAL, 1.0)
        if not bool(torch.isfinite(scales).all()):
            raise WrongState(
                "its weight, or the batch norm after it, holds inf or NaN",
                where=f"layer {self.layer_name}",
                hint="The training diverged. Go back to a checkpoint from before and train on "
                "with a lower learning rate.",
            )
        return Factors(scale, offset, scales, fake.to(weight.dtype))

    def is_initialised(self) -> bool:
        return self.activation_owner.initialised(_ACTS)

    def batches_seen(self) -> int:
        """How many batches the search for the clip bounds has seen; 0 when it is over."""
        initialiser = self.activation_owner._activations[_ACTS].initialiser
        return 0 if initialiser is None else initialiser.seen

    def _weight(self) -> Tensor:
        weight = self.replaced_module.weight
        if not isinstance(weight, Tensor):
            raise WrongState("has no weight", where=f"layer {self.layer_name}")
        return weight

    def _own_weights(self) -> dict[str, Tensor]:
        return {_WTS: self._weight()}

    def _quantised(self, x: Tensor) -> Tensor:
        owner = self.activation_owner
        if self.leads or is_exporting():
            return owner.quantise_activation(_ACTS, x)
        # The layer of the group that runs first has set the bounds, and counted the batch.
        settings = owner._activations[_ACTS].settings
        return ulq_activation(x, *owner.clips(_ACTS), settings.bits, fixed_min=settings.fixed_min)

    def _along_channels(self, values: Tensor) -> Tensor:
        """``(Cout,)`` shaped so that it broadcasts over the weight of a convolution."""
        return values.reshape(-1, *[1] * (self._weight().dim() - 1))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Weights and clip bounds must be there; of the rest what is there is taken (section 6)."""
        counted = state_dict.get(f"{prefix}cur_batch")
        for name in _OF_THE_REFERENCE:
            if name not in self._buffers:
                state_dict.pop(prefix + name, None)
        shared = f"{prefix}acts_comp_reuse."
        for key in [key for key in state_dict if key.startswith(shared)]:
            del state_dict[key]
        for prefix_of, activation in self._activations.items():
            searched = activation.settings.clip_max is None
            pending = (
                searched
                and counted is not None
                and float(counted) < min(activation.settings.batch_num, _MOST_COUNTED)
            )
            for bound in ("max", "min"):
                clip = state_dict.get(f"{prefix}{prefix_of}clip_{bound}")
                key = f"{prefix}{prefix_of}clip_{bound}_pre"
                if pending and key in state_dict:
                    state_dict[key] = torch.full_like(state_dict[key], torch.nan)
                elif clip is not None:
                    state_dict.setdefault(key, clip.clone())
        auxiliary = ["acts_scale", "acts_offset", "wts_scales"]
        for name in auxiliary:
            own = getattr(self, name, None)
            if own is not None:
                state_dict.setdefault(prefix + name, own.detach())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
