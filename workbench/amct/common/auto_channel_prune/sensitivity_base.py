"""Base of sensitivities, and the built-in one."""

from workbench.engine.search.channel_plugins import SensitivityBase, TaylorLossSensitivity

__all__ = ["SensitivityBase", "TaylorLossSensitivity"]
