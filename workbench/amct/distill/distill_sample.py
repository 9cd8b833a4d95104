"""Samplers of distillation, under the path that scripts import them from."""

from workbench.engine.flows.distill_sample import DistillSampleBase, ModelSingleTensorInput

__all__ = ["DistillSampleBase", "ModelSingleTensorInput"]
