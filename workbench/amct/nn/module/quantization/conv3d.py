"""Conv3dQAT."""

from workbench.engine.modules.qat.convolutions import Conv3dQAT

__all__ = ["Conv3dQAT"]
