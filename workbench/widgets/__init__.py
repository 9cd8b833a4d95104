"""The workbench in a notebook: ipywidgets that are windows onto one session and stay in step."""

try:
    import anywidget as _anywidget
    import ipywidgets as _ipywidgets
except ImportError as missing:
    raise ImportError(
        f"The widgets need the package {missing.name}. Install compression-workbench[jupyter]."
    ) from missing

from workbench.widgets.all_tabs import Workbench
from workbench.widgets.chart import Chart
from workbench.widgets.decomposition_panel import DecompositionPanel
from workbench.widgets.export_panel import ExportPanel
from workbench.widgets.formats_panel import FormatsPanel
from workbench.widgets.inspector import LayerInspector
from workbench.widgets.job_bar import JobBar, show_jobs
from workbench.widgets.layer_table import LayerTable
from workbench.widgets.netron_view import NetronView
from workbench.widgets.pruning_panel import PruningPanel
from workbench.widgets.search_monitor import SearchMonitor
from workbench.widgets.sensitivity import SensitivityChart
from workbench.widgets.train_monitor import TrainMonitor

del _anywidget, _ipywidgets

__all__ = [
    "Chart",
    "DecompositionPanel",
    "ExportPanel",
    "FormatsPanel",
    "JobBar",
    "LayerInspector",
    "LayerTable",
    "NetronView",
    "PruningPanel",
    "SearchMonitor",
    "SensitivityChart",
    "TrainMonitor",
    "Workbench",
    "show_jobs",
]
