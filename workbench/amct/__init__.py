"""``import workbench.amct as amct``: the names that AMCT scripts use, on this engine."""

from workbench.amct import tensor_decompose as tensor_decompose
from workbench.amct.absent import absent_names
from workbench.engine.export.save import save_model
from workbench.engine.flows.preprocess import quantize_preprocess
from workbench.engine.flows.ptq import create_quant_config, quantize_model
from workbench.engine.flows.qat import (
    create_quant_retrain_config,
    create_quant_retrain_model,
    restore_quant_retrain_model,
)
from workbench.engine.flows.qat_save import save_quant_retrain_model
from workbench.engine.search.flow import accuracy_based_auto_calibration
from workbench.engine.search.model_evaluator import ModelEvaluator

__all__ = [
    "ModelEvaluator",
    "accuracy_based_auto_calibration",
    "create_quant_config",
    "create_quant_retrain_config",
    "create_quant_retrain_model",
    "quantize_model",
    "quantize_preprocess",
    "restore_quant_retrain_model",
    "save_model",
    "save_quant_retrain_model",
]

__getattr__ = absent_names(__name__)
