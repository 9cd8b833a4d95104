"""The engine's exceptions: each derives from what the specification lets a user catch."""

from __future__ import annotations


class WorkbenchError(Exception):
    """Base of every error the engine raises on purpose.

    ``where`` says which file, field or layer is meant; ``hint`` says what to do next.
    """

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        self.message = message
        self.where = where
        self.hint = hint
        text = f"{where}: {message}" if where else message
        if hint and text[-1:] not in ".!?":
            text += "."
        super().__init__(f"{text} {hint}" if hint else text)


class WrongType(WorkbenchError, TypeError):
    """An argument or a field has the wrong type."""


class WrongValue(WorkbenchError, ValueError):
    """An argument or a field has a value outside what is allowed."""


class WrongState(WorkbenchError, RuntimeError):
    """A call came out of order, or a file is incomplete for it."""


class MissingFile(WorkbenchError, FileNotFoundError):
    """A file that a call needs is not there."""


class NotWritable(WorkbenchError, PermissionError):
    """A result file cannot be written where the caller wants it."""


class CaptureError(WorkbenchError, RuntimeError):
    """The model could not be captured as a graph; the message names the operator."""


class CalibrationError(WorkbenchError, RuntimeError):
    """A layer's data cannot be calibrated; ``layer_name`` says which layer's (chapter 25, 20)."""

    def __init__(self, message: str, *, layer_name: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.layer_name = layer_name


class Cancelled(WorkbenchError):
    """The caller's ``CancelToken`` was set; nothing half-written is left."""


class TrainingDiverged(WorkbenchError, ArithmeticError):
    """The loss or a gradient became NaN or infinite; the model is as it was at ``step``.

    ``layer`` is where it began, empty if no layer is to blame.
    """

    def __init__(
        self, message: str, *, where: str = "", hint: str = "", layer: str = "", step: int = 0
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.layer = layer
        self.step = step
