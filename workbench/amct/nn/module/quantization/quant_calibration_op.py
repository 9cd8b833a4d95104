"""QuantCalibrationOp."""

from workbench.engine.modules.kv_cache.calibration_op import QuantCalibrationOp

__all__ = ["QuantCalibrationOp"]
