"""The samplers of distillation live below this path in AMCT scripts."""
