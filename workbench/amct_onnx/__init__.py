"""``import workbench.amct_onnx``: the names that scripts use on ONNX files."""

from workbench.amct.absent import absent_names
from workbench.amct_onnx.convert_model import convert_qat_model

__all__ = ["convert_qat_model"]

__getattr__ = absent_names(__name__)
