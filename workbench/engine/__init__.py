"""The compression engine: headless, silent, the same calls for every front end.

The public names stand flat: ``from workbench.engine import create_quant_config, quantize_model``.
"""

from workbench.engine.errors import Cancelled, WorkbenchError
from workbench.engine.events import CancelToken, Event
from workbench.engine.export.save import save_model
from workbench.engine.export.verify import verify_export
from workbench.engine.flows.decompose import auto_decomposition, decompose_network
from workbench.engine.flows.preprocess import quantize_preprocess
from workbench.engine.flows.ptq import create_quant_config, quantize_model
from workbench.engine.flows.qat import (
    create_quant_retrain_config,
    create_quant_retrain_model,
    restore_quant_retrain_model,
)
from workbench.engine.flows.qat_save import save_quant_retrain_model
from workbench.engine.flows.training import TrainingResult, fit
from workbench.engine.flows.training_settings import TrainingSettings
from workbench.engine.search.evaluator import AutoCalibrationEvaluatorBase
from workbench.engine.search.flow import accuracy_based_auto_calibration
from workbench.engine.search.model_evaluator import ModelEvaluator

__all__ = [
    "AutoCalibrationEvaluatorBase",
    "CancelToken",
    "Cancelled",
    "Event",
    "ModelEvaluator",
    "TrainingResult",
    "TrainingSettings",
    "WorkbenchError",
    "accuracy_based_auto_calibration",
    "auto_decomposition",
    "create_quant_config",
    "create_quant_retrain_config",
    "create_quant_retrain_model",
    "decompose_network",
    "fit",
    "quantize_model",
    "quantize_preprocess",
    "restore_quant_retrain_model",
    "save_model",
    "save_quant_retrain_model",
    "verify_export",
]
