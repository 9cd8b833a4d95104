"""Plug-ins of the automatic channel search, under the paths that scripts import them from."""
