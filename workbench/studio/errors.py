"""What can go wrong with a project, beyond the engine's own errors."""

from __future__ import annotations

from workbench.engine.errors import WorkbenchError


class NotWritable(WorkbenchError, PermissionError):
    """The project folder cannot be written, so it is open for reading only."""


class JobActive(WorkbenchError, RuntimeError):
    """A job already runs in this project; one runs at a time."""


class JobFailed(WorkbenchError, RuntimeError):
    """A job that the caller waited for ended with an error; ``where`` says which job.

    ``wrong``: as in ``ErrorText``.
    """

    def __init__(
        self, message: str, *, where: str = "", hint: str = "", wrong: bool = False
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.wrong = wrong


class CodeNotAllowed(WorkbenchError, PermissionError):
    """Loading Python code was asked for, but the server was not started with it allowed."""
