"""Figures as people read them: sizes, counts, shares, and the dash for what is not known."""

from __future__ import annotations

import math
from typing import TypeGuard

UNKNOWN = "—"
MINUS = "−"


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _scaled(value: float, step: float, units: tuple[str, ...]) -> str:
    index = 0
    while abs(value) >= step and index < len(units) - 1:
        value /= step
        index += 1
    digits = 0 if index == 0 or abs(value) >= 100 else (1 if abs(value) >= 10 else 2)
    return f"{value:.{digits}f} {units[index]}".rstrip()


def size(value: float | None) -> str:
    """Bytes, decimal units: ``412 kB``."""
    return (
        _scaled(float(value), 1000.0, ("B", "kB", "MB", "GB", "TB")) if _known(value) else UNKNOWN
    )


def count(value: float | None) -> str:
    """A plain count: ``4.61 k``."""
    return _scaled(float(value), 1000.0, ("", "k", "M", "G", "T")) if _known(value) else UNKNOWN


def bit_operations(value: float | None) -> str:
    """Bit-operations: ``2.10 GBOP``."""
    if not _known(value):
        return UNKNOWN
    return _scaled(float(value), 1000.0, ("BOP", "kBOP", "MBOP", "GBOP", "TBOP"))


def metric(value: float | None, name: str = "") -> str:
    """A metric value: shares (accuracies) as per cent, decibel as such, others with four digits."""
    if not _known(value):
        return UNKNOWN
    if is_share(name):
        return f"{100.0 * float(value):.1f} %"
    if is_decibel(name):
        return f"{float(value):.1f} dB"
    return f"{float(value):.4f}"


def metric_delta(before: float, after: float, name: str = "") -> str:
    """The change of a metric in its own unit, signed: ``−6.4 %``."""
    if not (_known(before) and _known(after)):
        return ""
    change = after - before
    if is_share(name):
        points = abs(100.0 * change)
        text = f"{points:.1f} %" if points >= 0.1 else f"{points:.2f} %"
    elif is_decibel(name):
        text = f"{abs(change):.1f} dB"
    else:
        text = f"{abs(change):.4f}"
    return (MINUS if change < 0 else "+") + text if float(text.split()[0]) else "±0"


def loss(value: float | None, name: str = "") -> str:
    """What a trial lost: in percentage points for a share, else in the metric's own unit."""
    if not _known(value):
        return UNKNOWN
    text = f"{value * 100:.2f} %" if is_share(name) else exact(value)
    return text.replace("-", "−")


def is_share(name: str) -> bool:
    """Whether the metric called ``name`` lies in 0…1 and reads best as per cent."""
    lowered = name.lower()
    return any(part in lowered for part in ("top", "accuracy"))


def is_decibel(name: str) -> bool:
    return "psnr" in name.lower() or "sqnr" in name.lower()


def metric_scale(name: str) -> float:
    """Times what a metric is drawn, so that its axis reads as ``metric`` writes it."""
    return 100.0 if is_share(name) else 1.0


def metric_axis(name: str) -> dict[str, str]:
    """How the numbers of a metric's axis are written."""
    return {"tickformat": ".1f", "ticksuffix": " %"} if is_share(name) else {}


def percent(share: float, digits: int = 0) -> str:
    """A share as a whole number of percent, or with some digits."""
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else UNKNOWN


def ratio(before: float, after: float) -> str:
    """How many times smaller: ``3.5×``."""
    if not (_known(before) and _known(after)) or after <= 0:
        return ""
    value = before / after
    return f"{value:.1f}×" if value < 100 else f"{value:.0f}×"


def duration(seconds: float | None) -> str:
    """A span of time: ``8 s``, ``1 min 40 s``, ``2 h 5 min``."""
    if not _known(seconds):
        return UNKNOWN
    whole = max(0, round(float(seconds)))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def exact(value: float | None) -> str:
    """A measured number with enough digits to compare two layers: ``3.12e-02``, ``0.998731``."""
    if not _known(value):
        return UNKNOWN
    number = float(value)
    return f"{number:.2e}" if number != 0 and abs(number) < 1e-3 else f"{number:.6g}"


def metric_title(name: str) -> str:
    """A metric's name as people write it: ``top-1``, ``PSNR``."""
    return {"top1": "top-1", "top5": "top-5", "psnr": "PSNR"}.get(name, name)
