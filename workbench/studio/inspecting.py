"""Histograms of one layer, computed where the model is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.engine.events import CancelToken, Event
from workbench.studio import results
from workbench.studio.workspace import Configuration, Workspace, threads

if TYPE_CHECKING:
    from workbench.engine.analysis.histograms import LayerHistogram


def compute_histogram(workspace: Workspace, name: str) -> LayerHistogram | None:
    """Compute, store and return a layer's histograms; None before the project's first analysis.

    The caller holds the workspace's lock.
    """
    from workbench.engine.analysis.histograms import layer_histogram

    store = workspace.project.store
    if not store.get("record_layers"):
        return None
    with threads(workspace.project.settings.threads):
        found = workspace.calibration_with(name)
        if found is None:
            wanted: Configuration = workspace.configuration(everything=True)
            if name not in wanted.config.enabled():
                return None
            workspace.calibrate(wanted, on_event=_ignore, cancel=CancelToken())
            found = workspace.calibration_with(name)
        if found is None:
            return None
        config_hash, calibration, record = found
        histogram = layer_histogram(calibration.folded, record, name, workspace.source.calibration)
    results.store_histogram(store, histogram, config_hash)
    return histogram


def _ignore(event: Event) -> None:
    pass
