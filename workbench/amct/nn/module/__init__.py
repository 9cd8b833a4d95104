"""See ``module.quantization``."""

from workbench.amct.nn.module import quantization as quantization
