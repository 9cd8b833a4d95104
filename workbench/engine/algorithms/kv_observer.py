"""Observers of key-value cache calibration: INT8 factors of a tensor or of each of its channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from workbench.engine.algorithms.cache_hfmg import CacheHFMGObserver
from workbench.engine.algorithms.channel_ifmr import ChannelIFMRObserver
from workbench.engine.algorithms.ifmr import IFMRObserver
from workbench.engine.algorithms.observer import Observer
from workbench.engine.errors import WrongState
from workbench.engine.files.kv_config import KVParams
from workbench.engine.numerics.integer import FLT_EPSILON

BITS = 8
_LOWEST = -128


@dataclass(frozen=True)
class CacheFactors:
    """``clamp(rne(x / scale) + offset, -128, 127)``; one value, or one per channel."""

    scale: tuple[float, ...]
    offset: tuple[int, ...]


class KVObserver(Protocol):
    """Watches one tensor over the batches, then finds its factors (chapter 25 section 18)."""

    def update(self, x: Tensor) -> None:
        """One batch. ``TypeError`` for integers, ``RuntimeError`` for inf, NaN, other widths."""

    def result(self) -> CacheFactors:
        """The factors; ``RuntimeError`` when nothing was seen."""

    def prepare(self, channels: int) -> None:
        """Make what depends on the number of channels, before a saved state is loaded."""

    @property
    def channels(self) -> int:
        """Length of the last axis; 0 before the first batch and where it does not matter."""


def make_kv_observer(params: KVParams, asymmetric: bool, *, byte_budget: int) -> KVObserver:
    """``asymmetric``: with the global default already applied (``KVConfig.asymmetric``)."""
    if not params.per_channel:
        return TensorObserver(_observer(params, asymmetric, byte_budget), asymmetric)
    if params.act_algo == "hfmg":
        return ChannelHFMG(asymmetric, params.num_of_bins)
    return ChannelIFMR(
        ChannelIFMRObserver(
            BITS,
            asymmetric,
            params.max_percentile,
            params.min_percentile,
            params.search_range,
            params.search_step,
            byte_budget=byte_budget,
        )
    )


class TensorObserver:
    """One scale and offset for all values."""

    def __init__(self, observer: Observer, asymmetric: bool) -> None:
        self._observer = observer
        self._asymmetric = asymmetric

    def update(self, x: Tensor) -> None:
        self._observer.update(x)

    def prepare(self, channels: int) -> None:
        pass

    @property
    def channels(self) -> int:
        return 0

    def result(self) -> CacheFactors:
        found = self._observer.result()
        scale, offset = _guarded(found.scale, found.offset, self._asymmetric)
        return CacheFactors((scale,), (offset,))


class _PerChannel:
    """Holds every batch to the width of the first."""

    channels = 0

    def prepare(self, channels: int) -> None:
        self.channels = channels

    def _check(self, x: Tensor) -> None:
        count = x.shape[-1] if x.dim() else 1
        if not self.channels:
            self.prepare(count)
        elif count != self.channels:
            raise WrongState(
                f"the last axis has {count} channels, it had {self.channels} before",
                hint="Factors per channel need the same width at every call.",
            )

    def _require(self) -> None:
        if not self.channels:
            raise WrongState("no batch was seen", hint="Run at least one batch through the model.")


class ChannelIFMR(_PerChannel):
    """One scale and offset per index of the last axis, by IFMR."""

    def __init__(self, observer: ChannelIFMRObserver) -> None:
        self._observer = observer

    def prepare(self, channels: int) -> None:
        super().prepare(channels)
        self._observer.prepare(channels)

    def update(self, x: Tensor) -> None:
        self._check(x)
        self._observer.update(x)

    def result(self) -> CacheFactors:
        self._require()
        scale, offset = self._observer.result()
        return CacheFactors(tuple(scale.tolist()), tuple(offset.tolist()))


class ChannelHFMG(_PerChannel):
    """One scale and offset per index of the last axis, by HFMG: a histogram each."""

    def __init__(self, asymmetric: bool, bins: int) -> None:
        self._asymmetric, self._bins = asymmetric, bins
        self._observers: list[CacheHFMGObserver] = []

    def prepare(self, channels: int) -> None:
        super().prepare(channels)
        self._observers = [
            CacheHFMGObserver(BITS, self._asymmetric, self._bins) for _ in range(channels)
        ]

    def update(self, x: Tensor) -> None:
        self._check(x)
        # One copy that makes each channel a run of memory, instead of a gather for each.
        rows = x.detach().reshape(-1, self.channels).t().float().contiguous()
        for observer, row in zip(self._observers, rows, strict=True):
            observer.update(row)

    def result(self) -> CacheFactors:
        self._require()
        found = [observer.result() for observer in self._observers]
        factors = [_guarded(item.scale, item.offset, self._asymmetric) for item in found]
        return CacheFactors(tuple(s for s, _ in factors), tuple(o for _, o in factors))


def _observer(params: KVParams, asymmetric: bool, byte_budget: int) -> Observer:
    if params.act_algo == "hfmg":
        return CacheHFMGObserver(BITS, asymmetric, params.num_of_bins)
    return IFMRObserver(
        BITS,
        asymmetric,
        params.max_percentile,
        params.min_percentile,
        params.search_range,
        params.search_step,
        byte_budget=byte_budget,
        # Only the guard: this chapter's scales below FLT_EPSILON are 1.
        compat=True,
    )


def _guarded(scale: float, offset: int, asymmetric: bool) -> tuple[float, int]:
    if scale < FLT_EPSILON:
        return 1.0, _LOWEST if asymmetric else 0
    return scale, offset
