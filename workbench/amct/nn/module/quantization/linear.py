"""LinearQAT."""

from workbench.engine.modules.qat.linear import LinearQAT

__all__ = ["LinearQAT"]
