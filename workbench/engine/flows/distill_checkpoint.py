"""The student after its last finished group, on disk: an interrupted distillation goes on there."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from workbench.engine.errors import WrongState
from workbench.engine.events import CheckpointWritten, OnEvent, emit
from workbench.engine.flows.distill_training import GroupReport
from workbench.engine.flows.qat_state import is_main_process
from workbench.engine.flows.training_checkpoint import (
    check_same_model,
    read_checkpoint,
    write_checkpoint,
)

log = logging.getLogger("workbench.engine.flows.distill")


class GroupCheckpoint:
    """One file; ``identity``: all that the result depends on beside the data and the model."""

    def __init__(self, path: str, identity: Mapping[str, Any]) -> None:
        self._path = Path(path)
        self._identity = dict(identity)

    def load(self, student: nn.Module) -> list[GroupReport]:
        """Make the student what it was; the reports of its finished groups, none without a file.

        Errors: ``WrongValue`` for a damaged file, ``WrongState`` for one of another distillation.
        """
        if not self._path.exists():
            return []
        found = read_checkpoint(self._path)
        before = found.get("identity", {})
        changed = [
            f"{key} was {before.get(key)!r}, is {value!r}"
            for key, value in self._identity.items()
            if before.get(key) != value
        ]
        if changed:
            raise WrongState(
                f"the checkpoint is of another distillation: {'; '.join(changed)}",
                where=str(self._path),
                hint="Call distill() as it was called then, or remove the file.",
            )
        check_same_model(found["model"], student.state_dict(), where=str(self._path))
        student.load_state_dict(found["model"])
        reports = [
            GroupReport(**report | {key: tuple(report[key]) for key in ("names", "epoch_losses")})
            for report in found["reports"]
        ]
        log.info("%s: %d groups are trained already", self._path, len(reports))
        return reports

    def save(
        self, student: nn.Module, reports: Sequence[GroupReport], on_event: OnEvent | None
    ) -> None:
        """Write the student whole or not at all. Errors: ``NotWritable``."""
        if not is_main_process():
            return
        size = write_checkpoint(
            self._path,
            {
                "model": student.state_dict(),
                "reports": [asdict(report) for report in reports],
                "identity": self._identity,
            },
        )
        emit(on_event, CheckpointWritten(len(reports), str(self._path), size))

    def remove(self) -> None:
        if is_main_process():
            self._path.unlink(missing_ok=True)
