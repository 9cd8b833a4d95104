"""Charts: tables and engine results in, plotly figures out; no state, shared by app and widgets."""

from workbench.charts.comparison import comparison_frame
from workbench.charts.histogram import layer_histogram_chart
from workbench.charts.layer import error_chart, output_scatter, weight_range_chart
from workbench.charts.model import module_chart
from workbench.charts.overview import stage_strip, worst_chart
from workbench.charts.pareto import pareto_chart
from workbench.charts.search import bracket_strip, search_chart
from workbench.charts.sensitivity import (
    QUANTITIES,
    Quantity,
    sensitivity_chart,
)

__all__ = [
    "QUANTITIES",
    "Quantity",
    "bracket_strip",
    "comparison_frame",
    "error_chart",
    "layer_histogram_chart",
    "module_chart",
    "output_scatter",
    "pareto_chart",
    "search_chart",
    "sensitivity_chart",
    "stage_strip",
    "weight_range_chart",
    "worst_chart",
]
