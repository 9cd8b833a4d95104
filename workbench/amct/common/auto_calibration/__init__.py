"""Bases and built-ins of auto-calibration, under the path that scripts import them from."""

from workbench.amct.absent import absent_names
from workbench.engine.search.evaluator import AutoCalibrationEvaluatorBase
from workbench.engine.search.sensitivity import CosineSimilaritySensitivity, SensitivityBase
from workbench.engine.search.strategy import AutoCalibrationStrategyBase, BinarySearchStrategy

__all__ = [
    "AutoCalibrationEvaluatorBase",
    "AutoCalibrationStrategyBase",
    "BinarySearchStrategy",
    "CosineSimilaritySensitivity",
    "SensitivityBase",
]

__getattr__ = absent_names(__name__)
