"""GRUQAT."""

from workbench.engine.modules.qat.recurrent import GRUQAT

__all__ = ["GRUQAT"]
