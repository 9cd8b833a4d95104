"""ConvTranspose1dQAT."""

from workbench.engine.modules.qat.convolutions import ConvTranspose1dQAT

__all__ = ["ConvTranspose1dQAT"]
