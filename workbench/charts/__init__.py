"""Charts: tables and engine results in, plotly figures out; no state, shared by app and widgets."""

from workbench.charts.comparison import comparison_frame
from workbench.charts.drawn import figure_csv, figure_table
from workbench.charts.histogram import layer_histogram_chart
from workbench.charts.layer import error_chart, output_scatter, weight_range_chart
from workbench.charts.model import module_chart
from workbench.charts.overview import stage_strip, worst_chart
from workbench.charts.pareto import pareto_chart
from workbench.charts.pruning import (
    channel_plan_chart,
    channel_sensitivity_chart,
    sparse_weight_chart,
)
from workbench.charts.search import bracket_strip, search_chart
from workbench.charts.sensitivity import (
    QUANTITIES,
    Quantity,
    sensitivity_chart,
)
from workbench.charts.training import clip_chart, loss_chart, metric_chart, rate_chart
from workbench.charts.transformer import outlier_chart, smoothing_chart, weight_error_chart

__all__ = [
    "QUANTITIES",
    "Quantity",
    "bracket_strip",
    "channel_plan_chart",
    "channel_sensitivity_chart",
    "clip_chart",
    "comparison_frame",
    "error_chart",
    "figure_csv",
    "figure_table",
    "layer_histogram_chart",
    "loss_chart",
    "metric_chart",
    "module_chart",
    "outlier_chart",
    "output_scatter",
    "pareto_chart",
    "rate_chart",
    "search_chart",
    "sensitivity_chart",
    "smoothing_chart",
    "sparse_weight_chart",
    "stage_strip",
    "weight_error_chart",
    "weight_range_chart",
    "worst_chart",
]
