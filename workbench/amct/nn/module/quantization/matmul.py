"""MatMulQAT."""

from workbench.engine.modules.qat.linear import MatMulQAT

__all__ = ["MatMulQAT"]
