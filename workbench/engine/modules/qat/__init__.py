"""Layers with quantisation in the loop: what all of them share, and the single operators."""
