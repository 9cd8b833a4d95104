"""ConvTranspose2dQAT."""

from workbench.engine.modules.qat.convolutions import ConvTranspose2dQAT

__all__ = ["ConvTranspose2dQAT"]
