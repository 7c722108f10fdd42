"""Benchmarks of trunkline: `python -m benchmarks`, or `pytest benchmarks --benchmark-only`."""
