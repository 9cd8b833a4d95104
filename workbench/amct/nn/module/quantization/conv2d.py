"""Conv2dQAT."""

from workbench.engine.modules.qat.convolutions import Conv2dQAT

__all__ = ["Conv2dQAT"]
