"""One layer from inside, computed where the model is: histograms, and the comparison job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.engine.errors import WrongValue
from workbench.engine.events import CancelToken, Event
from workbench.studio import results
from workbench.studio.inspections import Inspection, store_inspection
from workbench.studio.workspace import Configuration, Workspace, threads

if TYPE_CHECKING:
    from workbench.engine.analysis.histograms import LayerHistogram
    from workbench.studio.tasks import Run


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


def inspect(run: Run) -> None:
    """The job: quantise one layer in every way, measure each, and keep that with its profile."""
    from workbench.engine.analysis.compare import alternatives
    from workbench.engine.analysis.layer_alone import LayerAlone, settings_of
    from workbench.engine.analysis.profile import layer_profile
    from workbench.studio.tasks import ensure_open

    run.report.stages(5)
    ensure_open(run.workspace, run.report)
    name, algorithms = str(run.args["name"]), run.args.get("algorithms")
    iterations = int(run.args.get("ada_iterations", 0))
    config = run.workspace.configuration(everything=True).config
    if name not in config.layers:
        raise WrongValue(
            f"layer {name} cannot be quantised", where="inspect", hint="Choose another layer."
        )
    batches = run.source.calibration
    run.report.stage(f"collecting what {name} reads")
    alone = LayerAlone(
        run.workspace.capture(),
        config,
        name,
        [(batch, {}) for batch in batches],
        seed=run.workspace.project.settings.seed,
        on_event=run.report,
        cancel=run.cancel,
    )
    run.report.stage(f"comparing the ways to quantise {name}")
    found = alternatives(
        alone, algorithms=algorithms, ada_iterations=iterations, on_event=run.report
    )
    run.report.stage(f"drawing {name}")
    tried = any(one.algorithm == "ada_quantize" for one in found)
    inspection = Inspection(
        name=name,
        settings=settings_of(alone.entry),
        alternatives=found,
        profile=layer_profile(alone),
        batches=len(alone.calls),
        batches_known=len(batches),
        ada_iterations=iterations if tried else 0,
        time=0.0,
    )
    store_inspection(run.store, inspection)
