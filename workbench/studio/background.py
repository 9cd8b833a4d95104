"""The worker's evaluation of the configuration as it is, behind everything else.

It runs in a thread of the worker process with the lowest claim on the processor, gives way to
every job and every edit, and says so when it would take too long.
"""

from __future__ import annotations

import logging
import math
import os
import sqlite3
import sys
import threading
import time

from workbench.engine.errors import Cancelled, WorkbenchError, WrongState
from workbench.engine.events import CancelToken, Event, check
from workbench.engine.export.torch_module import to_fake_quant
from workbench.studio import jobtable, measuring, ptq
from workbench.studio.measuring import DIED, LIMIT_SECONDS, Measuring
from workbench.studio.store import Store
from workbench.studio.workspace import Configuration, Workspace, threads

log = logging.getLogger("workbench.studio.background")

NICE = 10


class Background:
    """``tend`` is called by the worker's loop and never waits; ``stop`` frees the model."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._store = workspace.project.store
        self._thread: threading.Thread | None = None
        self._cancel = CancelToken()
        self._hash = self._lost = ""
        self._revision = -1
        self.is_loading = False
        """What it is at is needed by any job too: the model, its graph."""
        left = measuring.measuring_of(self._store)
        if left is not None and left.state == "running":
            measuring.step(self._store, left.config_hash, "failed", error=DIED)

    def tend(self) -> bool:
        """Begin what is wanted, end what is not any more; True while there is anything to do."""
        wanted = measuring.measuring_of(self._store)
        if self._thread is not None and self._thread.is_alive():
            if wanted is None or wanted.config_hash != self._hash or self._is_overtaken():
                self._cancel.cancel()
            return True
        if wanted is None or wanted.state != "wanted" or wanted.config_hash == self._lost:
            return False
        self._hash, self._revision = wanted.config_hash, -1
        if self._is_overtaken():
            measuring.drop(self._store, wanted.config_hash)
            return True
        self._cancel = CancelToken()
        self._thread = threading.Thread(
            target=self._run, args=(wanted, self._cancel), name="background", daemon=True
        )
        self._thread.start()
        return True

    def _is_overtaken(self) -> bool:
        """Is there a job, whoever runs it, or another configuration?"""
        store = self._store
        job = jobtable.latest(store)
        if job is not None and job.active:
            return True
        revision = store.head()[1]
        if revision == self._revision:
            return False
        self._revision = revision
        return _stored_hash(store) != self._hash

    def stop(self, seconds: float) -> bool:
        """Ask it to end and wait so long at most; True if the model is free."""
        if self._thread is None:
            return True
        self._cancel.cancel()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self, wanted: Measuring, cancel: CancelToken) -> None:
        _step_back()
        store = self._store
        try:
            try:
                with self._workspace.lock, threads(self._workspace.project.settings.threads):
                    self._workspace.follow_settings()
                    self._measure(wanted, cancel)
            except Cancelled:
                # Windows ask again once the edits rest and no job runs.
                measuring.drop(store, wanted.config_hash)
            except WorkbenchError as error:
                measuring.step(store, wanted.config_hash, "failed", error=error.message)
            except Exception as error:  # it ends in the project, not in a stack trace
                log.info("the background evaluation failed", exc_info=error)
                text = f"{type(error).__name__}: {error}"[:300]
                measuring.step(store, wanted.config_hash, "failed", error=text)
        except (WorkbenchError, sqlite3.Error) as error:  # a full disk, a deleted project
            self._lost = wanted.config_hash
            log.warning("the background evaluation could not say how it ended: %s", error)

    def _measure(self, wanted: Measuring, cancel: CancelToken) -> None:
        workspace, store = self._workspace, self._store
        found = configuration = None
        if workspace.is_loaded:
            configuration = self._configuration(wanted)
            found = workspace.statistics_of(configuration)
        expected = measuring.evaluation_seconds(store)
        if found is None:
            expected += float(store.get(measuring.CALIBRATION_SECONDS, math.nan))
        if not (wanted.asked or expected <= LIMIT_SECONDS):
            measuring.step(store, wanted.config_hash, "declined", seconds=expected)
            return
        measuring.step(store, wanted.config_hash, "running", seconds=expected)
        if configuration is None:
            self.is_loading = True
            try:
                configuration = self._configuration(wanted)
            finally:
                self.is_loading = False
        check(cancel)
        if found is None:
            # With everything quantised, so that the next layer that is switched needs no other.
            everything = {**configuration.columns}
            everything["quant_enable"] = [layer.eligible for layer in workspace.layers]
            found = workspace.calibrate(
                workspace.with_columns(configuration.revision, everything),
                on_event=_ignore,
                cancel=cancel,
            )
        start = time.perf_counter()
        module = to_fake_quant(
            found.folded,
            found.finalize(),
            configuration.config.enabled(),
            weights=found.fake_weights,
        )
        for part in module.modules():  # a batch may take long: look at every layer
            part.register_forward_pre_hook(lambda *_: check(cancel))
        source = workspace.source
        metric = source.metric(module, source.evaluation, cancel=cancel)
        measuring.answer(store, wanted.config_hash, metric, time.perf_counter() - start)

    def _configuration(self, wanted: Measuring) -> Configuration:
        """The configuration as it is, if it is still the wanted one, of the model as it was."""
        workspace = self._workspace
        if workspace.digest != self._store.get("model_digest"):
            raise WrongState(
                "the model or its data is not what was analysed",
                where="model",
                hint="Analyse again.",
            )
        found = workspace.configuration()
        if found.hash != wanted.config_hash:
            raise Cancelled("the configuration is another one by now")
        return found


def _stored_hash(store: Store) -> str:
    _, columns = store.configuration()
    return ptq.config_hash(store.layers(), columns, int(store.get("batch_num", 0)))


def _step_back() -> None:
    """Give this thread, and those it starts, a low claim on the processor, where that is known."""
    if sys.platform == "linux":
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        except OSError as error:
            log.debug("no lower priority: %s", error)


def _ignore(_event: Event) -> None:
    pass
