"""Torch modules that take the place of a layer: to train it, to calibrate it, to deploy it."""
