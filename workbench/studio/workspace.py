"""What a process keeps of a project between jobs: the model, its capture, calibrations."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.engine.analysis.cost import Cost, model_cost
from workbench.engine.events import CancelToken, OnEvent, Progress, check, emit
from workbench.engine.files.config import QuantConfig
from workbench.engine.files.record import Record
from workbench.engine.flows.balancing import find_balance
from workbench.engine.flows.calibration import Calibration
from workbench.engine.graph.capture import Captured, capture
from workbench.engine.graph.layers import LayerInfo
from workbench.studio import ptq
from workbench.studio.image_folder import ImageBatches
from workbench.studio.kept_weights import current as current_weights
from workbench.studio.measuring import CALIBRATION_SECONDS
from workbench.studio.project import Project
from workbench.studio.sources import LiveSource, LoadedSource, load_source

CALIBRATIONS_KEPT = 2


@dataclass(frozen=True)
class Configuration:
    """The configuration at one moment: columns by layer, the engine's form, its hash."""

    revision: int
    columns: dict[str, list[Any]]
    config: QuantConfig
    hash: str


class Workspace:
    """One project's model in this process; ``lock`` is held while it is used."""

    def __init__(self, project: Project, live: LiveSource | None = None) -> None:
        self.project = project
        self.live = live
        self.training: dict[str, Any] = {}
        """Recipe and loop of the training that was last asked for, where they are objects."""
        self.made: dict[Path, Workspace] = {}
        """Of the smaller projects that were made of a live model: kept, as it is nowhere else."""
        self.lock = threading.Lock()
        self._source: LoadedSource | None = None
        self._weights: Path | None = None
        self._captured: Captured | None = None
        self._digest: str | None = None
        self._calibrations: OrderedDict[str, Calibration] = OrderedDict()

    @property
    def source(self) -> LoadedSource:
        if self._source is None:
            self._weights = current_weights(self.project)
            self._source = load_source(self.project, self.live)
        return self._source

    def capture(self, on_event: OnEvent | None = None) -> Captured:
        if self._captured is None:
            self._captured = capture(self.source.model, self.source.example, on_event=on_event)
        return self._captured

    def replace_live(self, live: LiveSource) -> None:
        """Another model object under the same project: forget what was kept of the old one."""
        with self.lock:
            self.live = live
            self.forget_model()

    def follow_settings(self) -> None:
        """Take up what another session, here or in another process, has given the project since."""
        old = self.project.settings
        new = self.project.read_again()
        loaded = self._source is not None
        trained = loaded and current_weights(self.project) != self._weights
        if trained or (new.source, new.data, new.metric) != (old.source, old.data, old.metric):
            self.forget_model()

    def forget_model(self) -> None:
        """The project's model is another one now; it is loaded again when it is needed."""
        self._source = self._captured = self._digest = None
        self._calibrations.clear()

    @property
    def is_loaded(self) -> bool:
        return self._captured is not None

    @property
    def digest(self) -> str:
        if self._digest is None:
            self._digest = model_digest(self.source)
        return self._digest

    @property
    def layers(self) -> list[LayerInfo]:
        return list(self.capture().layers.values())

    @property
    def batch_num(self) -> int:
        return len(self.source.calibration)

    def configuration(self, *, everything: bool = False) -> Configuration:
        """As it is in the store now; with ``everything``, all that can be quantised is."""
        revision, columns = self.project.store.configuration()
        if everything:
            columns["quant_enable"] = [layer.eligible for layer in self.layers]
        return self.with_columns(revision, columns)

    def with_columns(self, revision: int, columns: dict[str, list[Any]]) -> Configuration:
        layers = self.layers
        return Configuration(
            revision,
            columns,
            ptq.from_columns(layers, columns, self.batch_num),
            ptq.config_hash(layers, columns, self.batch_num),
        )

    def cost(self, config: QuantConfig | None) -> Cost:
        """Of the model under ``config``; None: all float."""
        size = int(self.project.store.get("float_bytes", 0))
        return model_cost(self.capture().layers, config, size)

    def settings(self, columns: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
        """What differs from the generated configuration, by layer and column."""
        return ptq.changed_settings(self.layers, columns)

    def calibrate(
        self, wanted: Configuration, *, on_event: OnEvent, cancel: CancelToken
    ) -> Calibration:
        """A finished calibration of ``wanted``; the last two are kept."""
        found = self._calibrations.get(wanted.hash)
        if found is None:
            start = time.perf_counter()
            first = self.source.calibration[0]
            found = Calibration(
                self.capture(),
                wanted.config,
                balance=find_balance(
                    self.capture(),
                    wanted.config,
                    lambda model: model(*first),
                    on_event=on_event,
                    cancel=cancel,
                ),
                calibration_data=((batch, {}) for batch in self.source.calibration),
                seed=self.project.settings.seed,
                on_event=on_event,
                cancel=cancel,
            )
            total = len(self.source.calibration)
            for done, batch in enumerate(self.source.calibration):
                check(cancel)
                found.model(*batch)
                emit(on_event, Progress("calibration", done + 1, total))
            found.finalize()
            self.project.store.put(**{CALIBRATION_SECONDS: time.perf_counter() - start})
        self.keep(wanted.hash, found)
        return found

    def keep(self, config_hash: str, calibration: Calibration) -> None:
        self._calibrations[config_hash] = calibration
        self._calibrations.move_to_end(config_hash)
        while len(self._calibrations) > CALIBRATIONS_KEPT:
            self._calibrations.popitem(last=False)

    def statistics_of(self, wanted: Configuration) -> Calibration | None:
        """A kept calibration that has every layer of ``wanted`` with the same settings, if any.

        It may have quantised more of them: good enough for a trial, not for a record.
        """
        exact = self._calibrations.get(wanted.hash)
        if exact is not None:
            return exact
        layers = {name: wanted.config.layers[name] for name in wanted.config.enabled()}
        for config_hash, kept in reversed(self._calibrations.items()):
            if all(kept.config.layers.get(name) == entry for name, entry in layers.items()):
                self._calibrations.move_to_end(config_hash)
                return kept
        return None

    def calibration_with(self, layer: str) -> tuple[str, Calibration, Record] | None:
        """(hash, calibration, record) of the newest kept calibration that has ``layer``."""
        for config_hash, calibration in reversed(self._calibrations.items()):
            record = calibration.finalize()
            if layer in record.layers:
                return config_hash, calibration, record
        return None


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch with ``count`` threads in this thread, as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def model_digest(source: LoadedSource) -> str:
    """A hash of what results depend on: structure, weights, data (of evaluation a sample)."""
    digest = hashlib.blake2b(repr(source.model).encode(), digest_size=16)
    digest.update(source.metric.name.encode())
    for name, value in sorted(source.model.state_dict().items()):
        digest.update(name.encode())
        _add(digest, value)
    for batch in source.calibration:
        for x in batch:
            _add(digest, x)
    evaluation = source.evaluation
    if isinstance(evaluation, ImageBatches):
        digest.update(evaluation.fingerprint())
        evaluation = evaluation[:1]
    for i, item in enumerate(evaluation):
        digest.update(f"{[tuple(x.shape) for x in item.inputs]}".encode())
        if i == 0:
            for x in item.inputs:
                _add(digest, x)
        if item.target is not None:
            _add(digest, item.target)
    return digest.hexdigest()


def _add(digest: hashlib.blake2b, value: Tensor) -> None:
    digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
    data = value.detach().cpu().contiguous().reshape(-1)
    if data.numel():
        digest.update(data.view(torch.uint8).numpy().tobytes())
