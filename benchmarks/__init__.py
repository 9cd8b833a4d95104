"""Measurements behind the targets: ``python -m benchmarks`` prints a table, writes bench.json."""
