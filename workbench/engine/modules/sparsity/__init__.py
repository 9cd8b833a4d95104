"""Layers that keep two of every four weights."""
