"""Modules that take a layer's place to calibrate it, and those that then compute on small codes."""
