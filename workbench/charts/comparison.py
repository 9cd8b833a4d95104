"""The ways to quantise one layer as a table of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from workbench.charts import formats
from workbench.charts.spoken import said
from workbench.charts.text import _, ngettext

if TYPE_CHECKING:
    from workbench.engine.analysis.compare import Alternative

COLUMNS = ("label", "what", "scale", "offset", "error", "sqnr", "seconds", "state")


def comparison_frame(found: Sequence[Alternative], in_use: Sequence[bool]) -> pd.DataFrame:
    """One row an alternative. ``state``: ``●`` in use, ``★`` the smallest error of its kind."""
    best = set()
    for group in (("activation", "balance"), ("weight",)):
        alike = [one for one in found if one.kind in group and _comparable(one)]
        if alike:
            best.add(min(alike, key=lambda one: one.error).label)
    rows = [
        (
            label_text(one.label),
            kind_text(one.kind),
            scale_text(one),
            str(one.offset) if not one.trouble else formats.UNKNOWN,
            f"{one.error:.2e}" if math.isfinite(one.error) else formats.UNKNOWN,
            _decibel(one.sqnr_db),
            time_text(one.seconds),
            state_text(one, used, one.label in best),
        )
        for one, used in zip(found, in_use, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)


def kind_text(kind: str) -> str:
    """What a way quantises."""
    return {
        "activation": _("activation"),
        "balance": _("activation, balanced"),
        "weight": _("weights"),
    }.get(kind, kind)


def label_text(label: str) -> str:
    """The name of a way in the reader's language: ``IFMR``, ``ARQ, 7 bits``, ``ARQ per tensor``."""
    name, _space, where = label.partition(" ")
    scales = {"per channel": _("per channel"), "per tensor": _("per tensor")}
    if where in scales:
        return f"{name} {scales[where]}"
    name, _comma, rest = label.partition(", ")
    bits = rest.removesuffix(" bits")
    if not bits.isdigit():
        return label
    return f"{name}, " + ngettext("{n} bit", "{n} bits", int(bits)).format(n=bits)


def _comparable(one: Alternative) -> bool:
    """More bits always win: only ways with as many bits as configured compete."""
    return (
        bool(one.settings) and not one.trouble and not {"act_bits", "wts_bits"} & set(one.settings)
    )


def state_text(one: Alternative, used: bool, best: bool) -> str:
    """What to say of a row: in use, best of its kind, baseline only, or why it cannot be."""
    if one.trouble:
        return f"✕ {said(one.trouble)}"
    parts = []
    if used:
        parts.append("● " + _("in use"))
    if best:
        parts.append("★ " + _("smallest error"))
    if not one.settings:
        parts.append(_("baseline"))
    return " · ".join(parts)


def scale_text(one: Alternative) -> str:
    """One scale, or the smallest and the largest of several."""
    if one.trouble:
        return formats.UNKNOWN
    low = f"{one.scale:.4g}"
    return low if one.scale == one.scale_max else f"{low} … {one.scale_max:.4g}"


def time_text(seconds: float) -> str:
    """How long the factors took: ``3 ms``, ``4.2 s``."""
    if seconds < 0.0005:
        return "< 1 ms"
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _decibel(value: float) -> str:
    if value == math.inf:
        return _("exact")
    return f"{value:.1f} dB" if math.isfinite(value) else formats.UNKNOWN
