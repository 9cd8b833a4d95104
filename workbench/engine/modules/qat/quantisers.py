"""What every layer with quantisation in the loop shares: its quantisers and their state.

Source: specification chapter 30 sections 4.2, 5 and 9.3, with A3, A4, A8, A10, A11 and A14 of its
"Do better". A module that derives from ``QuantisingModule`` declares quantisers by the prefix that
their names begin with in its state dict (``acts_``, ``acts_h_``, ``input_``, ``wts_``, ...).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed
from torch import Tensor, nn

from workbench.engine.algorithms.clip_initialiser import ClipInitialiser
from workbench.engine.algorithms.ulq import (
    affine_factors,
    pass_through,
    ulq_activation,
    valid_clips,
)
from workbench.engine.algorithms.weight_training import arq_weight, ulq_weight, weight_scales
from workbench.engine.errors import WrongState, WrongType
from workbench.engine.modules.qat.onnx_nodes import activation_nodes, is_exporting, weight_nodes
from workbench.engine.numerics.integer import FLT_EPSILON, int_range

logger = logging.getLogger("workbench.engine.modules")


@dataclass(frozen=True)
class ActivationSettings:
    """How one activation is quantised.

    ``clip_max`` set: the bounds start there, and from -1 or ``clip_min`` below. Otherwise they are
    found in the first ``batch_num`` forwards. ``quantise_first``: those forwards are quantised
    already, between the extremes of their own batch (graph mode); single operators leave them as
    they are. ``symmetric``: offset 0, the bound that reaches further decides. ``deploy_state``: the
    state holds the offset as the integer that is deployed, of shape ``(1,)``, instead of a float of
    shape ``()``.
    """

    bits: int = 8
    batch_num: int = 1
    fixed_min: bool = False
    clip_max: float | None = None
    clip_min: float | None = None
    symmetric: bool = False
    quantise_first: bool = True
    deploy_state: bool = False


@dataclass(frozen=True)
class WeightSettings:
    """How one weight is quantised.

    ``trained_scales``: ULQ instead of ARQ. ``channel_axis`` None: one scale for the whole weight;
    0, or 1 for the stored weight of a transposed convolution in ``groups``. ``deploy_state``: the
    state holds the (zero) offsets too, as float and as the integer that is deployed.
    """

    bits: int = 8
    trained_scales: bool = False
    channel_axis: int | None = 0
    groups: int = 1
    deploy_state: bool = False


@dataclass
class _Activation:
    settings: ActivationSettings
    ready: bool
    initialiser: ClipInitialiser | None = None


@dataclass
class _Weight:
    settings: WeightSettings
    ready: bool


class QuantisingModule(nn.Module):
    """Base (or mixin, before the layer's own class) of modules that quantise while they train.

    The bounds of an activation are found once. ``<prefix>clip_max_pre`` and ``clip_min_pre`` hold
    the last good bounds and are NaN until then, so a checkpoint says by itself whether they were
    (A3). Weights are quantised anew in every forward: that costs half a nanosecond a value, less
    than keeping a second copy of them does. The state stays float32 whatever the module is cast to.
    """

    layer_name: str = ""
    """For messages; a flow that knows the layer's name sets it."""

    _activations: dict[str, _Activation]
    _weights: dict[str, _Weight]

    def add_activation(
        self, prefix: str, settings: ActivationSettings, device: torch.device | None = None
    ) -> None:
        """Register the state of an activation quantiser under ``prefix``."""
        given = settings.clip_max is not None
        high = settings.clip_max if settings.clip_max is not None else 1.0
        low = settings.clip_min if settings.clip_min is not None else -1.0
        for name, value in (("clip_max", high), ("clip_min", low)):
            clip = torch.tensor(value, dtype=torch.float32, device=device)
            self.register_parameter(prefix + name, nn.Parameter(clip))
            pre = clip.clone() if given else torch.full_like(clip, torch.nan)
            self.register_buffer(f"{prefix}{name}_pre", pre)
        shape = (1,) if settings.deploy_state else ()
        self.register_buffer(prefix + "scale", torch.full(shape, torch.nan, device=device))
        if settings.deploy_state:
            dtype = torch.int16 if settings.bits > 8 else torch.int8
            offset = torch.zeros(shape, dtype=dtype, device=device)
            self.register_buffer(prefix + "offset_deploy", offset)
        else:
            self.register_buffer(prefix + "offset", torch.full(shape, torch.nan, device=device))
        self.__dict__.setdefault("_activations", {})[prefix] = _Activation(settings, given)
        if given:
            self._write_factors(prefix)

    def add_weight(
        self,
        prefix: str,
        settings: WeightSettings,
        scales: int,
        device: torch.device | None = None,
    ) -> None:
        """Register the state of a weight quantiser with so many scales under ``prefix``."""
        empty = torch.full((scales,), torch.nan, device=device)
        if settings.trained_scales:
            self.register_parameter(prefix + "scales", nn.Parameter(empty))
        else:
            self.register_buffer(prefix + "scales", empty)
        if settings.deploy_state:
            self.register_buffer(prefix + "offsets", torch.zeros_like(empty))
            codes = torch.zeros((scales,), dtype=torch.int8, device=device)
            self.register_buffer(prefix + "offsets_deploy", codes)
        self.__dict__.setdefault("_weights", {})[prefix] = _Weight(settings, False)

    def quantise_activation(self, prefix: str, x: Tensor) -> Tensor:
        """``x`` as the layer shall see it; same dtype. While bounds are searched, see the settings.

        ``TypeError`` for a tensor that holds no floating point numbers, ``RuntimeError`` for inf or
        NaN while the bounds are being found.
        """
        if not x.is_floating_point():
            raise WrongType(
                f"an input of dtype {x.dtype} cannot be quantised; allowed: floating point",
                where=self._where(),
            )
        if is_exporting():
            return self._exported_activation(prefix, x)
        if self.observe_activation(prefix, x):
            return self.on_grid(prefix, x)
        return pass_through(x, *self.clips(prefix))

    def observe_activation(self, prefix: str, x: Tensor) -> bool:
        """Bring the bounds up to date before ``x`` is quantised; False: it is not to be, yet.

        One call a forward: while bounds are searched it counts as a batch.
        """
        searching = not self.initialised(prefix)
        if searching and x.numel():
            self._initialise(prefix, x.detach())
        self._settle(prefix)
        return not searching or (
            self._activations[prefix].settings.quantise_first and x.numel() > 0
        )

    def on_grid(self, prefix: str, x: Tensor) -> Tensor:
        """``x`` quantised between the bounds as they are; differentiable."""
        settings = self._activations[prefix].settings
        clips = self._grid_clips(prefix, self.clips(prefix))
        return ulq_activation(x, *clips, settings.bits, fixed_min=settings.fixed_min)

    def quantise_weight(self, prefix: str, weight: Tensor) -> Tensor:
        """``weight`` on its grid, in its own dtype and shape; the parameter keeps its float values.

        With the first weight it sees, ULQ starts from ARQ's scales.
        """
        state = self._weights[prefix]
        settings = state.settings
        layout: dict[str, Any] = {
            "channel_axis": settings.channel_axis,
            "groups": settings.groups,
        }
        if is_exporting():
            scales = getattr(self, prefix + "scales").detach()
            return weight_nodes(weight, scales, settings.bits, **layout)
        if not settings.trained_scales:
            quantised, scales = arq_weight(weight, settings.bits, **layout)
            getattr(self, prefix + "scales").copy_(scales)
            return quantised
        self._settle_scales(prefix, weight)
        return ulq_weight(weight, getattr(self, prefix + "scales"), settings.bits, **layout)

    def activation_settings(self, prefix: str) -> ActivationSettings:
        return self._activations[prefix].settings

    def weight_settings(self, prefix: str) -> WeightSettings:
        return self._weights[prefix].settings

    def clips(self, prefix: str) -> tuple[nn.Parameter, nn.Parameter]:
        """``(clip_max, clip_min)``."""
        return self.get_parameter(prefix + "clip_max"), self.get_parameter(prefix + "clip_min")

    def initialised(self, prefix: str) -> bool:
        """Whether the bounds of this activation were found, given or loaded."""
        state = self._activations[prefix]
        if not state.ready:
            state.ready = bool(torch.isfinite(self.get_buffer(prefix + "clip_max_pre")))
        return state.ready

    def activation_factors(self, prefix: str) -> tuple[Tensor, Tensor]:
        """Scale and offset that the current bounds give: ``()``, float32, the offset integral."""
        clips = self._grid_clips(prefix, self._valid_clips(prefix))
        return affine_factors(*clips, self._activations[prefix].settings.bits)

    def final_activation_factors(self, prefix: str) -> tuple[float, int]:
        """``activation_factors`` as numbers for a file; ``RuntimeError`` if they are not finite."""
        scale, offset = (float(value) for value in self.activation_factors(prefix))
        if not (math.isfinite(scale) and math.isfinite(offset)):
            high, low = (float(clip.detach()) for clip in self.clips(prefix))
            raise WrongState(
                f"its clip bounds are {low} and {high}; allowed: finite numbers",
                where=self._where(),
                hint="The training diverged. Go back to a checkpoint from before and train on "
                "with a lower learning rate.",
            )
        return scale, int(offset)

    def weight_factors(self, prefix: str, weight: Tensor) -> Tensor:
        """The scales that ``weight`` has now: ``(Cout,)`` or ``(1,)``, float32."""
        settings = self._weights[prefix].settings
        scales: Tensor = getattr(self, prefix + "scales").detach()
        if settings.trained_scales and bool(torch.isfinite(scales).all()):
            return scales.to(torch.float32).clamp(min=FLT_EPSILON)
        return weight_scales(
            weight, settings.bits, channel_axis=settings.channel_axis, groups=settings.groups
        )

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``; ``eval()`` brings the factors that an export reads up to date."""
        super().train(mode)
        if not mode:
            self._refresh()
        return self

    def foreign_widths(self, stored: Mapping[str, Tensor]) -> list[str]:
        """Quantisers whose ``stored`` state was found with other bit widths than this module's.

        ``stored``: by the names of this module, whose weights are loaded already. A scale tells its
        width: the same range has 17 times as many steps at 8 bits as at 4.
        """
        found = []
        for prefix, activation in self.__dict__.get("_activations", {}).items():
            scale = stored.get(prefix + "scale")
            high, low = (stored.get(f"{prefix}clip_{end}") for end in ("max", "min"))
            if scale is not None and high is not None and low is not None:
                steps = (high.clamp(min=0) - low.clamp(max=0)) / scale
                found += _foreign(prefix, steps / (2**activation.settings.bits - 1))
        for prefix, weight in self._own_weights().items():
            settings = self._weights[prefix].settings
            scales = stored.get(prefix + "scales")
            if scales is not None:
                mine = weight_scales(
                    weight,
                    settings.bits,
                    channel_axis=settings.channel_axis,
                    groups=settings.groups,
                )
                found += _foreign(prefix, mine / scales.to(mine.device))
        return found

    def _own_weights(self) -> dict[str, Tensor]:
        """The weight behind each weight quantiser that an export reads the state of."""
        return {}

    def _initialise(self, prefix: str, x: Tensor) -> None:
        """Bounds of the batches seen: of the last one alone until the search is done."""
        state = self._activations[prefix]
        settings = state.settings
        if state.initialiser is None:
            state.initialiser = ClipInitialiser(settings.bits, settings.batch_num)
        try:
            state.initialiser.update(x)
        except WrongState as error:
            raise WrongState(error.message, where=self._where(), hint=error.hint) from error
        bounds: tuple[float, float] | list[Tensor]
        if state.initialiser.done:
            bounds = state.initialiser.result()
            state.initialiser, state.ready = None, True
        else:
            bounds = list(reversed(torch.aminmax(x.to(torch.float32))))
        for clip, bound in zip(self.clips(prefix), bounds, strict=True):
            clip.detach().copy_(torch.as_tensor(bound))
        if state.ready:
            self._remember(prefix)

    def _remember(self, prefix: str) -> None:
        for name, clip in zip(("max", "min"), self.clips(prefix), strict=True):
            self.get_buffer(f"{prefix}clip_{name}_pre").copy_(clip.detach())

    @torch.no_grad()
    def _settle(self, prefix: str) -> None:
        """Bounds that make a grid, equal on all ranks, and the factors they give."""
        clips = torch.stack(self._valid_clips(prefix))
        if self.training:
            clips = mean_over_ranks(clips)
        for clip, value in zip(self.clips(prefix), clips, strict=True):
            clip.copy_(value)
        if self._activations[prefix].ready:
            self._remember(prefix)
        self._write_factors(prefix)

    def _valid_clips(self, prefix: str) -> tuple[Tensor, Tensor]:
        state = self._activations[prefix]
        clips = [clip.detach() for clip in self.clips(prefix)]
        pre = clips
        if state.ready:
            pre = [self.get_buffer(f"{prefix}clip_{name}_pre") for name in ("max", "min")]
        return valid_clips(*clips, *pre, fixed_min=state.settings.fixed_min)

    def _grid_clips(self, prefix: str, clips: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The ends of the grid that the bounds mean: themselves, unless it is symmetric."""
        settings = self._activations[prefix].settings
        if not settings.symmetric:
            return clips
        high, low = clips
        lowest, highest = int_range(settings.bits)
        scale = torch.where(-low > high, low / lowest, high / highest)
        return scale * highest, scale * lowest

    def _write_factors(self, prefix: str) -> None:
        settings = self._activations[prefix].settings
        scale, offset = self.activation_factors(prefix)
        self.get_buffer(prefix + "scale").copy_(scale)
        key = "offset_deploy" if settings.deploy_state else "offset"
        self.get_buffer(prefix + key).copy_(offset)

    @torch.no_grad()
    def _settle_scales(self, prefix: str, weight: Tensor) -> None:
        scales = self.get_parameter(prefix + "scales")
        state = self._weights[prefix]
        if state.ready:
            scales.clamp_(min=FLT_EPSILON)
        else:
            scales.copy_(self.weight_factors(prefix, weight))
            state.ready = True

    @torch.no_grad()
    def _refresh(self) -> None:
        for prefix in self.__dict__.get("_activations", {}):
            if self.initialised(prefix):
                self._write_factors(prefix)
        for prefix, weight in self._own_weights().items():
            state = self._weights[prefix]
            if not state.settings.trained_scales:
                self.get_buffer(prefix + "scales").copy_(self.weight_factors(prefix, weight))
            elif state.ready:
                self._settle_scales(prefix, weight)

    def _exported_activation(self, prefix: str, x: Tensor) -> Tensor:
        if not self._activations[prefix].ready:
            logger.warning(
                "%s is exported before its clip bounds were found: its input stays float",
                self._where() or type(self).__name__,
            )
            return x
        settings = self._activations[prefix].settings
        key = "offset_deploy" if settings.deploy_state else "offset"
        scale, offset = self.get_buffer(prefix + "scale"), self.get_buffer(prefix + key)
        return activation_nodes(x, scale, offset, settings.bits)

    def _where(self) -> str:
        return f"layer {self.layer_name}" if self.layer_name else ""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        for prefix, activation in self.__dict__.get("_activations", {}).items():
            activation.initialiser = None
            activation.ready = activation.settings.clip_max is not None
            if activation.ready and not bool(
                torch.isfinite(self.get_buffer(prefix + "clip_max_pre"))
            ):
                # A checkpoint from before the first forward of the reference.
                self._remember(prefix)
        for weight in self.__dict__.get("_weights", {}).values():
            weight.ready = False
        self._refresh()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """``.half()`` and the like change the layer's own parameters only (A11)."""
        before = {name: tensor.detach() for name, tensor in self._quantiser_state()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, now in self._quantiser_state():
            if now.is_floating_point() and now.dtype != torch.float32:
                now.data = before[name].to(now.device)
            if now.device != before[name].device:
                for state in self.__dict__.get("_activations", {}).values():
                    state.initialiser = None
        return self

    def _quantiser_state(self) -> list[tuple[str, Tensor]]:
        prefixes = (*self.__dict__.get("_activations", {}), *self.__dict__.get("_weights", {}))
        own = [*self._parameters.items(), *self._buffers.items()]
        return [(n, t) for n, t in own if t is not None and prefixes and n.startswith(prefixes)]


def _foreign(prefix: str, ratio: Tensor) -> list[str]:
    """State that is not there yet, as NaN, has no width."""
    middle = ratio.median()
    return [prefix.rstrip("_")] if bool((middle > 4) | (middle < 0.25)) else []


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of ``values`` over all processes of a distributed run; as it is outside of one."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return values
    ranks = torch.distributed.get_world_size()
    if ranks == 1:
        return values
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total / ranks
