"""Conversion of quantised ONNX files."""

from workbench.engine.export.convert_qat import convert_qat_model

__all__ = ["convert_qat_model"]
