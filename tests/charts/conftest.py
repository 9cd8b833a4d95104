"""A layer table as the session hands it out, with known figures."""

from __future__ import annotations

import math

import pandas as pd
import pytest


def make_layers(errors: list[float | None], skipped: set[int] = frozenset()) -> pd.DataFrame:  # type: ignore[assignment]
    rows = []
    for i, error in enumerate(errors):
        known = error is not None
        eligible = i != len(errors) - 1 or len(errors) == 1
        rows.append(
            {
                "name": f"stage{i // 4}.block{i}.conv",
                "type": "Conv2d",
                "shape": "8×8×3×3",
                "parameters": 100 * (i + 1),
                "macs": 1000 * (i + 1),
                "mac_share": 0.1,
                "eligible": eligible,
                "reason": "" if eligible else "weights are shared",
                "quant_enable": eligible and i not in skipped,
                "retrain_enable": False,
                "act_algo": "ifmr",
                "wts_algo": "arq_quantize",
                "channel_wise": True,
                "act_bits": 8,
                "wts_bits": 8,
                "cosine": 1.0 - error if known else math.nan,
                "error": error if known else math.nan,
                "sqnr": -10 * math.log10(2 * error) if known and error > 0 else math.nan,
                "accumulated_error": math.nan,
                "weight_range": 4.0,
                "prune_sensitivity": math.nan,
                "state": "ineligible"
                if not eligible
                else ("skipped" if i in skipped else "quantised"),
            }
        )
    return pd.DataFrame(rows)


@pytest.fixture
def layers() -> pd.DataFrame:
    return make_layers([1e-4, 2e-2, 3e-5, 0.3, 1e-3, None, 5e-4, None], skipped={1})
