"""``import workbench.amct as amct``: the names that AMCT scripts use, on this engine."""

from workbench.amct import nn as nn
from workbench.amct import tensor_decompose as tensor_decompose
from workbench.amct.absent import absent_names

# The package of this name must be loaded before the function takes its place.
from workbench.amct.distill import distill_sample as _distill_sample  # noqa: F401
from workbench.engine.export.save import save_model
from workbench.engine.flows.compress import (
    create_compressed_retrain_model,
    restore_compressed_retrain_model,
    save_compressed_retrain_model,
)
from workbench.engine.flows.distill import create_distill_config, create_distill_model
from workbench.engine.flows.distill_run import distill
from workbench.engine.flows.distill_save import save_distill_model
from workbench.engine.flows.kv_cache import create_quant_cali_config, create_quant_cali_model
from workbench.engine.flows.module_quantize import convert, quantize
from workbench.engine.flows.module_quantize_presets import (
    FP8_OFMR_CFG,
    HIFP8_CAST_CFG,
    HIFP8_OFMR_CFG,
    HIFP8_QUANTILE_CFG,
    HIFP8_SMOOTHQUANT_CFG,
    INT4_AWQ_WEIGHT_QUANT_CFG,
    INT4_GPTQ_WEIGHT_QUANT_CFG,
    INT8_MINMAX_WEIGHT_QUANT_CFG,
    INT8_SMOOTHQUANT_CFG,
    MXFP4_AWQ_WEIGHT_QUANT_CFG,
    MXFP8_QUANT_CFG,
)
from workbench.engine.flows.preprocess import quantize_preprocess
from workbench.engine.flows.prune import (
    create_prune_retrain_model,
    restore_prune_retrain_model,
    save_prune_retrain_model,
)
from workbench.engine.flows.ptq import create_quant_config, quantize_model
from workbench.engine.flows.qat import (
    create_quant_retrain_config,
    create_quant_retrain_model,
    restore_quant_retrain_model,
)
from workbench.engine.flows.qat_save import save_quant_retrain_model
from workbench.engine.modules.quantize.base import BaseQuantizeModule
from workbench.engine.modules.quantize.registry import algorithm_register
from workbench.engine.search.channel_flow import auto_channel_prune_search
from workbench.engine.search.flow import accuracy_based_auto_calibration
from workbench.engine.search.model_evaluator import ModelEvaluator

__all__ = [
    "FP8_OFMR_CFG",
    "HIFP8_CAST_CFG",
    "HIFP8_OFMR_CFG",
    "HIFP8_QUANTILE_CFG",
    "HIFP8_SMOOTHQUANT_CFG",
    "INT4_AWQ_WEIGHT_QUANT_CFG",
    "INT4_GPTQ_WEIGHT_QUANT_CFG",
    "INT8_MINMAX_WEIGHT_QUANT_CFG",
    "INT8_SMOOTHQUANT_CFG",
    "MXFP4_AWQ_WEIGHT_QUANT_CFG",
    "MXFP8_QUANT_CFG",
    "BaseQuantizeModule",
    "ModelEvaluator",
    "accuracy_based_auto_calibration",
    "algorithm_register",
    "auto_channel_prune_search",
    "convert",
    "create_compressed_retrain_model",
    "create_distill_config",
    "create_distill_model",
    "create_prune_retrain_model",
    "create_quant_cali_config",
    "create_quant_cali_model",
    "create_quant_config",
    "create_quant_retrain_config",
    "create_quant_retrain_model",
    "distill",
    "quantize",
    "quantize_model",
    "quantize_preprocess",
    "restore_compressed_retrain_model",
    "restore_prune_retrain_model",
    "restore_quant_retrain_model",
    "save_compressed_retrain_model",
    "save_distill_model",
    "save_model",
    "save_prune_retrain_model",
    "save_quant_retrain_model",
]

__getattr__ = absent_names(__name__)
