"""The single operators of quantisation-aware training, and ``QuantCalibrationOp``."""

from workbench.amct.nn.module.quantization.conv1d import Conv1dQAT
from workbench.amct.nn.module.quantization.conv2d import Conv2dQAT
from workbench.amct.nn.module.quantization.conv3d import Conv3dQAT
from workbench.amct.nn.module.quantization.conv_transpose_1d import ConvTranspose1dQAT
from workbench.amct.nn.module.quantization.conv_transpose_2d import ConvTranspose2dQAT
from workbench.amct.nn.module.quantization.gru import GRUQAT
from workbench.amct.nn.module.quantization.linear import LinearQAT
from workbench.amct.nn.module.quantization.lstm import LSTMQAT
from workbench.amct.nn.module.quantization.matmul import MatMulQAT
from workbench.engine.modules.kv_cache.calibration_op import QuantCalibrationOp

__all__ = [
    "GRUQAT",
    "LSTMQAT",
    "Conv1dQAT",
    "Conv2dQAT",
    "Conv3dQAT",
    "ConvTranspose1dQAT",
    "ConvTranspose2dQAT",
    "LinearQAT",
    "MatMulQAT",
    "QuantCalibrationOp",
]
