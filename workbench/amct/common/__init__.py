"""Sub-path of the compatibility package; see ``common.auto_calibration``."""

from workbench.amct.absent import absent_names

__getattr__ = absent_names(__name__)
