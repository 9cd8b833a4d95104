"""What is open right now: projects, sessions, jobs."""

from __future__ import annotations

from workbench.studio.image_folder import ImageFolder
from workbench.studio.opening import open_session
from workbench.studio.project import DataSpec, Project, ProjectSettings, SourceSpec
from workbench.studio.session import Session
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
    "ErrorText",
    "ExportResult",
    "ExportedFile",
    "ImageFolder",
    "JobState",
    "ParityLine",
    "Project",
    "ProjectSettings",
    "Session",
    "SourceSpec",
    "Summary",
    "open_session",
]
