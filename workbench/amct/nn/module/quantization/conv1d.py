"""Conv1dQAT."""

from workbench.engine.modules.qat.convolutions import Conv1dQAT

__all__ = ["Conv1dQAT"]
