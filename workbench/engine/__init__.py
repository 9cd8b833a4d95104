"""The compression engine: headless, silent, the same calls for every front end.

The public names stand flat: ``from workbench.engine import create_quant_config, quantize_model``.
"""

from workbench.engine.errors import (
    CalibrationError,
    Cancelled,
    TrainingDiverged,
    WorkbenchError,
)
from workbench.engine.events import CancelToken, Event
from workbench.engine.export.convert_qat import convert_qat_model
from workbench.engine.export.save import save_model
from workbench.engine.export.verify import verify_export
from workbench.engine.flows.block_calibration import calibrate_by_block
from workbench.engine.flows.compress import (
    create_compressed_retrain_model,
    restore_compressed_retrain_model,
    save_compressed_retrain_model,
)
from workbench.engine.flows.decompose import auto_decomposition, decompose_network
from workbench.engine.flows.distill import create_distill_config, create_distill_model
from workbench.engine.flows.distill_run import distill
from workbench.engine.flows.distill_sample import DistillSampleBase, ModelSingleTensorInput
from workbench.engine.flows.distill_save import save_distill_model
from workbench.engine.flows.folder_model import empty_weights
from workbench.engine.flows.kv_cache import (
    calibration_status,
    create_quant_cali_config,
    create_quant_cali_model,
)
from workbench.engine.flows.module_quantize import convert, quantization_report, quantize
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
from workbench.engine.flows.quantize_folder import load_quantized_folder, quantize_folder
from workbench.engine.flows.selective import fold_sparsity, update_prune_record
from workbench.engine.flows.training import TrainingResult, fit
from workbench.engine.flows.training_settings import TrainingSettings
from workbench.engine.modules.kv_cache.calibration_op import QuantCalibrationOp
from workbench.engine.modules.qat.convolutions import (
    Conv1dQAT,
    Conv2dQAT,
    Conv3dQAT,
    ConvTranspose1dQAT,
    ConvTranspose2dQAT,
)
from workbench.engine.modules.qat.linear import LinearQAT, MatMulQAT
from workbench.engine.modules.qat.recurrent import GRUQAT, LSTMQAT
from workbench.engine.modules.quantize.base import BaseQuantizeModule
from workbench.engine.modules.quantize.registry import algorithm_register
from workbench.engine.search.channel_flow import auto_channel_prune_search
from workbench.engine.search.channel_plugins import (
    GreedySearch,
    SearchChannelBase,
    SensitivityBase,
    TaylorLossSensitivity,
)
from workbench.engine.search.evaluator import AutoCalibrationEvaluatorBase
from workbench.engine.search.flow import accuracy_based_auto_calibration
from workbench.engine.search.model_evaluator import ModelEvaluator

__all__ = [
    "FP8_OFMR_CFG",
    "GRUQAT",
    "HIFP8_CAST_CFG",
    "HIFP8_OFMR_CFG",
    "HIFP8_QUANTILE_CFG",
    "HIFP8_SMOOTHQUANT_CFG",
    "INT4_AWQ_WEIGHT_QUANT_CFG",
    "INT4_GPTQ_WEIGHT_QUANT_CFG",
    "INT8_MINMAX_WEIGHT_QUANT_CFG",
    "INT8_SMOOTHQUANT_CFG",
    "LSTMQAT",
    "MXFP4_AWQ_WEIGHT_QUANT_CFG",
    "MXFP8_QUANT_CFG",
    "AutoCalibrationEvaluatorBase",
    "BaseQuantizeModule",
    "CalibrationError",
    "CancelToken",
    "Cancelled",
    "Conv1dQAT",
    "Conv2dQAT",
    "Conv3dQAT",
    "ConvTranspose1dQAT",
    "ConvTranspose2dQAT",
    "DistillSampleBase",
    "Event",
    "GreedySearch",
    "LinearQAT",
    "MatMulQAT",
    "ModelEvaluator",
    "ModelSingleTensorInput",
    "QuantCalibrationOp",
    "SearchChannelBase",
    "SensitivityBase",
    "TaylorLossSensitivity",
    "TrainingDiverged",
    "TrainingResult",
    "TrainingSettings",
    "WorkbenchError",
    "accuracy_based_auto_calibration",
    "algorithm_register",
    "auto_channel_prune_search",
    "auto_decomposition",
    "calibrate_by_block",
    "calibration_status",
    "convert",
    "convert_qat_model",
    "create_compressed_retrain_model",
    "create_distill_config",
    "create_distill_model",
    "create_prune_retrain_model",
    "create_quant_cali_config",
    "create_quant_cali_model",
    "create_quant_config",
    "create_quant_retrain_config",
    "create_quant_retrain_model",
    "decompose_network",
    "distill",
    "empty_weights",
    "fit",
    "fold_sparsity",
    "load_quantized_folder",
    "quantization_report",
    "quantize",
    "quantize_folder",
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
    "update_prune_record",
    "verify_export",
]
