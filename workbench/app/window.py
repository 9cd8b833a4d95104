"""What belongs to one browser window alone: selection, filter, order, threshold, theme."""

from __future__ import annotations

from typing import Any

import param

from workbench.charts import QUANTITIES

(
    MODEL_TAB, LAYERS_TAB, INSPECT_TAB, SEARCH_TAB, TRAIN_TAB, FORMATS_TAB, EXPORT_TAB,
    HISTORY_TAB, CODE_TAB,
) = range(9)  # fmt: skip


class WindowState(param.Parameterized):
    """Private state of a window; everything shared is in the session."""

    selected = param.Parameter(default=(), doc="Names of the selected layers.")
    inspected = param.String(default="", doc="Name of the layer in the Inspect tab.")
    quantity: Any = param.Selector(default="error", objects=list(QUANTITIES))
    order: Any = param.Selector(default="execution", objects=["execution", "sorted"])
    threshold = param.Number(default=0.99, bounds=(-1.0, 1.0), doc="Cosine similarity.")
    pattern = param.String(default="", doc="Regular expression a layer's name must contain.")
    type = param.String(default="", doc="Layer type to show; empty: all.")
    search_part: Any = param.Selector(
        default="quantise", objects=["quantise", "channels", "decompose"]
    )
    dark = param.Boolean(default=False)
    tab = param.Integer(default=LAYERS_TAB)
    notice = param.String(default="", doc="A sentence about what just went wrong.")
