"""``import workbench.amct_onnx``: the names that scripts use on ONNX files."""

from workbench.amct.absent import absent_names

__getattr__ = absent_names(__name__)
