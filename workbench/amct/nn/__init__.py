"""Layers for quantisation-aware training, under the path that scripts import them from."""

from workbench.amct.nn import module as module
