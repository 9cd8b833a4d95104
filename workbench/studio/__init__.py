"""What is open right now: projects, sessions, jobs."""

from __future__ import annotations

from workbench.studio.factory import Factory
from workbench.studio.image_folder import ImageFolder
from workbench.studio.opening import open_session
from workbench.studio.project import DataSpec, Project, ProjectSettings
from workbench.studio.pruning_state import DecompositionState, PrunePlan, PruningState, Shrunk
from workbench.studio.session import Session
from workbench.studio.source_spec import SourceSpec
from workbench.studio.state import (
    Change,
    ErrorText,
    ExportedFile,
    ExportResult,
    JobState,
    ParityLine,
    Summary,
)

__all__ = [
    "Change",
    "DataSpec",
    "DecompositionState",
    "ErrorText",
    "ExportResult",
    "ExportedFile",
    "Factory",
    "ImageFolder",
    "JobState",
    "ParityLine",
    "Project",
    "ProjectSettings",
    "PrunePlan",
    "PruningState",
    "Session",
    "Shrunk",
    "SourceSpec",
    "Summary",
    "open_session",
]
