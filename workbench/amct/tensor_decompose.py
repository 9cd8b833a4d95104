"""Tensor decomposition, under the path that scripts import it from."""

from workbench.amct.absent import absent_names
from workbench.engine.flows.decompose import auto_decomposition, decompose_network

__all__ = ["auto_decomposition", "decompose_network"]

__getattr__ = absent_names(__name__)
