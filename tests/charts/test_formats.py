"""Figures as people read them."""

from __future__ import annotations

import math

import pytest

from workbench.charts import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [(412_000, "412 kB"), (999, "999 B"), (1_500, "1.50 kB"), (23_400_000, "23.4 MB")],
)
def test_size(value: float, text: str) -> None:
    assert formats.size(value) == text


def test_unknown_is_a_dash() -> None:
    assert formats.size(math.nan) == formats.metric(math.nan) == formats.duration(None) == "—"
    assert formats.ratio(math.nan, 2) == formats.metric_delta(math.nan, 1) == ""


def test_metrics_by_unit() -> None:
    assert formats.metric(0.978, "top-1") == "97.8 %"
    assert formats.metric(31.44, "PSNR") == "31.4 dB"
    assert formats.metric_delta(0.978, 0.914, "top-1") == "−6.4 %"
    assert formats.metric_delta(0.978, 0.9785, "top-1") == "+0.05 %"
    assert formats.metric_delta(0.978, 0.97801, "top-1") == "±0"


def test_duration() -> None:
    assert formats.duration(8.2) == "8 s"
    assert formats.duration(100) == "1 min 40 s"
    assert formats.duration(7500) == "2 h 5 min"


def test_losses_of_a_share_are_points() -> None:
    assert formats.loss(0.00738095, "top1") == "0.74 %"
    assert formats.loss(-4.76e-04, "top1") == "−0.05 %"
    assert formats.loss(0.25, "psnr") == "0.25"
    assert formats.loss(math.nan, "top1") == "—"
