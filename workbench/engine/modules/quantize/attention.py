"""Attention whose key-value cache is kept in hifloat8."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from workbench.engine.algorithms.scale_rule import scale_and_offset
from workbench.engine.errors import WrongState
from workbench.engine.modules.quantize.base import BaseQuantizeModule, named
from workbench.engine.modules.quantize.deployed import DeployModule, buffer
from workbench.engine.modules.quantize.minmax import AverageMaximum
from workbench.engine.modules.quantize.operators import quantize_codes
from workbench.engine.numerics.hifloat8 import HIFLOAT8

SOURCES = ("DeepseekV3Attention", "LongcatFlashMLA")
_NAMES = ("past_key_values", "past_key_value")
_HANDLERS = "_workbench_kv_handlers"


class KVCacheQuantile(BaseQuantizeModule):
    """Watches what the attention puts into its cache and answers as it does.

    Largest magnitudes of keys and values are averaged over ``batch_num`` calls: 0.99 of what was,
    0.01 of what is. ``scale_k`` and ``scale_v`` [1] bring them to 16. Chapter 25 section 10.
    """

    scale_k: Tensor | None
    scale_v: Tensor | None

    def __init__(
        self, ori_module: nn.Module, layer_name: str, quant_config: dict[str, Any]
    ) -> None:
        super().__init__(ori_module, layer_name, quant_config)
        self.ori_module_type = type(ori_module).__name__
        self.attention = ori_module
        self._keys, self._values = AverageMaximum(), AverageMaximum()
        self.register_buffer("scale_k", None)
        self.register_buffer("scale_v", None)

    def statistics(self) -> dict[str, Any]:
        return {"keys": self._keys, "values": self._values}

    def calls_missing(self) -> int:
        return max(0, self.batch_num - self.cur_batch)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _with_cache(self.attention, self, args, kwargs)

    def through_cache(
        self, update: Callable[..., Any], key: Tensor, value: Tensor, *rest: Any, **options: Any
    ) -> Any:
        """The cache's own ``update``, watched."""
        if self.cur_batch < self.batch_num and key.numel():
            with torch.no_grad(), named(self.layer_name):
                self._keys.update(key)
                self._values.update(value)
            self.cur_batch += 1
            if self.cur_batch == self.batch_num:
                self.scale_k, self.scale_v = (
                    scale_and_offset(seen.high, seen.low, HIFLOAT8).scale
                    for seen in (self._keys, self._values)
                )
        return update(key, value, *rest, **options)

    def __getattr__(self, name: str) -> Any:
        return _inner(self, super().__getattr__, name)


class AttentionDeploy(DeployModule):
    """The cache holds codes of key / scale_k and value / scale_v; the attention sees numbers.

    Without a cache the call gets one of its own, so that its answer is that of a cached one.
    """

    scale_k: Tensor
    scale_v: Tensor

    def __init__(self, quant_module: KVCacheQuantile) -> None:
        super().__init__(quant_module.layer_name, "kvcache=hifloat8 per tensor")
        self.attention = quant_module.attention
        buffer(self, "scale_k", quant_module.scale_k)
        buffer(self, "scale_v", quant_module.scale_v)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _with_cache(self.attention, self, args, kwargs)

    def through_cache(
        self, update: Callable[..., Any], key: Tensor, value: Tensor, *rest: Any, **options: Any
    ) -> Any:
        """The cache's own ``update`` on codes."""
        codes = (
            quantize_codes(x, scale, None, HIFLOAT8, divide=True)
            for x, scale in ((key, self.scale_k), (value, self.scale_v))
        )
        kept = update(*codes, *rest, **options)
        if any(x.dtype != HIFLOAT8.storage for x in kept):
            raise WrongState(
                "the cache held numbers that are not quantised",
                where=f"layer {self.layer_name}",
                hint="Give the converted model a fresh cache.",
            )
        return tuple(
            (HIFLOAT8.decode(x) * scale).to(like.dtype)
            for x, scale, like in zip(kept, (self.scale_k, self.scale_v), (key, value), strict=True)
        )

    def __getattr__(self, name: str) -> Any:
        return _inner(self, super().__getattr__, name)


class NpuDeepseekV3AttentionQuant(AttentionDeploy):
    """In place of a ``DeepseekV3Attention``."""


class NpuLongcatFlashMLA(AttentionDeploy):
    """In place of a ``LongcatFlashMLA``, whose two halves have an entry in the cache each."""


class PassingCache:
    """A cache for one call: what is put in comes back."""

    def update(self, key: Tensor, value: Tensor, *_rest: Any, **_options: Any) -> Any:
        """Keys and values as they are."""
        return key, value

    def get_seq_length(self, _layer: int = 0) -> int:
        """Nothing was there before."""
        return 0


_Handler = KVCacheQuantile | AttentionDeploy


def _with_cache(
    attention: nn.Module, handler: _Handler, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call the attention with its layer of the cache led through ``handler``."""
    parameters = list(inspect.signature(attention.forward).parameters)
    name = next((n for n in _NAMES if n in parameters), _NAMES[0])
    place = parameters.index(name) if name in parameters else len(args)
    cache = args[place] if place < len(args) else kwargs.get(name)
    if cache is None:
        cache = PassingCache()
        if place < len(args):
            args = (*args[:place], cache, *args[place + 1 :])
        else:
            kwargs = {**kwargs, name: cache}
    _handlers(cache)[getattr(attention, "layer_idx", None)] = handler
    return attention(*args, **kwargs)


def _handlers(cache: Any) -> dict[Any, _Handler]:
    """Who serves which layer of a cache; its ``update`` is replaced once, for all of them."""
    found = vars(cache).get(_HANDLERS)
    if found is not None:
        return cast(dict[Any, _Handler], found)
    handlers: dict[Any, _Handler] = {}
    original = cache.update

    @functools.wraps(original)
    def update(
        key: Tensor, value: Tensor, layer_idx: Any = None, *rest: Any, **options: Any
    ) -> Any:
        handler = handlers.get(layer_idx)
        if handler is None:
            return original(key, value, layer_idx, *rest, **options)
        return handler.through_cache(original, key, value, layer_idx, *rest, **options)

    setattr(cache, _HANDLERS, handlers)
    cache.update = update
    return handlers


def _inner(module: nn.Module, own: Callable[[str], Any], name: str) -> Any:
    """An attribute of a wrapper, else of the attention in it: models look at ``layer_idx``."""
    try:
        return own(name)
    except AttributeError:
        attention = module.__dict__.get("_modules", {}).get("attention")
        if attention is None:
            raise
        return getattr(attention, name)
