"""The observers of a calibration: which layers share one, what each has seen and found.

Source: specification chapter 10 sections 9 and 11, D13, D16.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from workbench.engine.algorithms.activation_scale import ActivationScale
from workbench.engine.algorithms.batch import Extremes, take_batch
from workbench.engine.algorithms.hfmg import HFMGObserver
from workbench.engine.algorithms.ifmr import IFMRObserver
from workbench.engine.algorithms.observer import make_observer
from workbench.engine.algorithms.side_by_side import Beside
from workbench.engine.files.config import LayerConfig, QuantConfig
from workbench.engine.graph.capture import Captured
from workbench.engine.graph.sources import input_sources
from workbench.engine.numerics.half import to_half_precision
from workbench.engine.numerics.integer import fake_quantize_activation

KEPT_PER_LAYER = 2**18
"""Beyond so many bytes a layer is counted in bins, which is faster than keeping its values."""

_BUNCH = 16
"""Samples to count and scales to find, done one after another while the forward goes on."""


@dataclass
class _Group:
    """Layers that read the same tensor with the same settings share one observer."""

    settings: LayerConfig
    observer: IFMRObserver | HFMGObserver | None
    batches: int = 0
    result: ActivationScale | None = None


class Observers:
    """One observer for each tensor that ``names`` read, and how many batches each layer has seen.

    ``alone``: layers that get one of their own whatever they read. ``sample_limit`` and ``compat``
    as for ``Calibration``; the observers together keep at most ``byte_budget``.
    """

    def __init__(
        self,
        captured: Captured,
        config: QuantConfig,
        names: Sequence[str],
        *,
        alone: Collection[str],
        byte_budget: int,
        sample_limit: int | None,
        compat: bool,
    ) -> None:
        self._config = config
        self._sample_limit = sample_limit
        # A layer's input is counted while the layer runs, scales are found some time later.
        self._counting, self._finding = Beside(_BUNCH, 0), Beside(_BUNCH, 1)
        self._batches = dict.fromkeys(names, 0)
        sources = input_sources(captured)
        members: dict[tuple[str, Any], list[str]] = {}
        for name in names:
            source = name if name in alone else sources.get(name, name)
            members.setdefault((source, config.layers[name].activation), []).append(name)
        share = min(KEPT_PER_LAYER, byte_budget // max(1, len(members)))
        self._groups: dict[str, _Group] = {}
        for layers in members.values():
            settings = config.layers[layers[0]]
            observer = make_observer(
                settings.activation,
                config.asymmetric(layers[0]),
                byte_budget=share,
                sample_limit=sample_limit,
                compat=compat,
            )
            self._groups.update(dict.fromkeys(layers, _Group(settings, observer)))

    def counts(self, name: str) -> bool:
        """Whether a batch that reaches layer ``name`` now is one of its ``batch_num``."""
        return self._batches[name] < self._config.batch_num

    def see(self, name: str, value: Tensor, known: Extremes | None = None) -> None:
        """One batch of a layer's (balanced) input, with its extremes where they are known.

        ``value`` must stay as it is until ``settle``. Errors name the layer and the batch; they are
        raised here or there.
        """
        group = self._groups[name]
        number = self._batches[name] + 1
        # Of layers that read the same tensor, the first to run shows it to the observer.
        if number > group.batches and group.observer is not None and value.numel():
            self._show(group.observer, value, known, f"layer {name}, batch {number}")
        group.batches = max(group.batches, number)
        self._batches[name] = number

    def _show(
        self,
        observer: IFMRObserver | HFMGObserver,
        value: Tensor,
        known: Extremes | None,
        where: str,
    ) -> None:
        if self._sample_limit is None:

            def count() -> None:
                with _naming(where):
                    observer.update(value, known)

            self._counting.do(count)
            self._counting.start()
            return
        with _naming(where):
            batch = take_batch(value, self._sample_limit, known).own()
        # A sample is a small copy: nobody needs to wait until it is counted.
        self._counting.do(lambda: observer.absorb(batch))

    def settle(self, name: str) -> None:
        """To be called when the layer has run: whoever changes its input from now on may.

        Its scale is found some time after every batch is in: what was kept of it can go.
        """
        finding = self._counting
        if self._sample_limit is None:
            self._counting.wait()
            finding = self._finding
        if self._groups[name].batches >= self._config.batch_num:
            finding.do(lambda: self._find(name))

    def wait(self) -> None:
        """Return when all that was seen has been counted, and the scales found that can be."""
        self._counting.wait()
        self._finding.wait()

    def _find(self, name: str) -> None:
        group = self._groups[name]
        if group.observer is not None:
            group.result, group.observer = group.observer.result(), None

    def missing(self) -> dict[str, int]:
        """Layers that have seen fewer than ``batch_num`` batches, with the number seen."""
        return {n: seen for n, seen in self._batches.items() if seen < self._config.batch_num}

    @property
    def settled(self) -> int:
        """Number of layers whose scale is known."""
        return sum(group.result is not None for group in self._groups.values())

    def is_settled(self, name: str) -> bool:
        return self._groups[name].result is not None

    def bits(self, name: str) -> int:
        return self._groups[name].settings.activation.num_bits

    def scale(self, name: str) -> ActivationScale:
        """What the layer's batches gave, from those seen so far where that is not all of them.

        In half precision if ``fakequant_precision_mode`` says so.
        """
        self.wait()
        self._find(name)
        found = self._groups[name].result
        assert found is not None
        if self._config.fakequant_precision_mode == "FORCE_FP16_QUANT":
            return ActivationScale(to_half_precision(found.scale), found.offset)
        return found

    def quantized(self, name: str, value: Tensor) -> Tensor:
        """A layer's balanced input, moved to the grid that was found for it."""
        found = self.scale(name)
        moved = fake_quantize_activation(value, found.scale, found.offset, self.bits(name))
        return moved.to(value.dtype)


@contextmanager
def _naming(where: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        raise type(error)(f"{where}: {error}") from error
