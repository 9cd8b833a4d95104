"""LSTMQAT."""

from workbench.engine.modules.qat.recurrent import LSTMQAT

__all__ = ["LSTMQAT"]
