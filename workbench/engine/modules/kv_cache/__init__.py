"""Modules that watch the keys and values of a cache and pass them on unchanged."""
