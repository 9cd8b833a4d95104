"""One tensor under observation: its calls are counted, its factors found at the last one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from workbench.engine.algorithms.kv_observer import CacheFactors, make_kv_observer
from workbench.engine.algorithms.plain_state import from_plain, to_plain
from workbench.engine.errors import CalibrationError, WrongState, WrongType
from workbench.engine.files.kv_config import KVParams
from workbench.engine.files.record import KVCacheRecord
from workbench.engine.numerics.integer import FLT_EPSILON

_LARGEST = 1.0 / FLT_EPSILON
_ADVICE = "Remove this layer from the quantisation."


class Observation(nn.Module):
    """Watches ``batch_num`` calls of one tensor; ``record`` holds the factors afterwards.

    What it has seen is part of the state dict (weights-only loadable), so a calibration that was
    saved half-way goes on where it was. It stays on the device of the first call.
    """

    def __init__(
        self, name: str, params: KVParams, asymmetric: bool, batch_num: int, byte_budget: int
    ) -> None:
        super().__init__()
        self.layer_name = name
        self.batch_num = batch_num
        self.cur_batch = 0
        self.record: KVCacheRecord | None = None
        self._algorithm = params.act_algo.upper()
        self._place: Tensor | None = None
        self._observer = make_kv_observer(params, asymmetric, byte_budget=byte_budget)

    @property
    def is_done(self) -> bool:
        return self.record is not None

    @torch.no_grad()
    def watch(self, x: Tensor) -> KVCacheRecord | None:
        """Take in one call; the factors when it was the last one, else None.

        Errors: ``TypeError`` for what is no floating tensor; ``CalibrationError`` naming the layer
        for data that has no INT8 factors; ``RuntimeError`` when the number of channels changes.
        """
        if self.is_done:
            return None
        self._check_type(x)
        if x.numel() == 0:
            return None
        self._check_range(x)
        if self._place is None:
            self._place = torch.empty(0, device=x.device)
        try:
            self._observer.update(x.to(self._place.device))
        except WrongState as error:
            raise WrongState(
                error.message, where=f"layer {self.layer_name}", hint=error.hint
            ) from None
        self.cur_batch += 1
        if self.cur_batch < self.batch_num:
            return None
        return self._finish()

    def get_extra_state(self) -> dict[str, Any]:
        factors = self.record
        return {
            "cur_batch": self.cur_batch,
            "place": self._place,
            "channels": self._observer.channels,
            "observer": to_plain(self._observer) if factors is None else None,
            "factors": None if factors is None else [list(factors.scale), list(factors.offset)],
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.cur_batch, self._place = state["cur_batch"], state["place"]
        if state["factors"] is not None:
            scale, offset = state["factors"]
            self.record = KVCacheRecord(tuple(scale), tuple(offset))
            return
        self.record = None
        if state["channels"]:
            self._observer.prepare(state["channels"])
        from_plain(self._observer, state["observer"])

    def _check_type(self, x: Any) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise WrongType(
                f"only floating tensors can be calibrated, not {kind}",
                where=f"layer {self.layer_name}",
            )

    def _check_range(self, x: Tensor) -> None:
        low, high = (float(end) for end in torch.aminmax(x.detach()))
        # NaN fails both comparisons.
        if not (low >= -_LARGEST and high <= _LARGEST):
            raise self._failure(
                f"its values lie between {low:g} and {high:g}; allowed: finite, "
                f"-{_LARGEST:.0f} to {_LARGEST:.0f}"
            )

    def _finish(self) -> KVCacheRecord:
        found: CacheFactors = self._observer.result()
        if not all(0 < scale <= _LARGEST for scale in found.scale):
            raise self._failure("no finite scale was found")
        self.record = KVCacheRecord(found.scale, found.offset)
        return self.record

    def _failure(self, cause: str) -> CalibrationError:
        return CalibrationError(
            f"[{self._algorithm}]: Do layer {self.layer_name} data calibration failed! {cause}",
            layer_name=self.layer_name,
            hint=_ADVICE,
        )
