"""Benchmark on classical smooth problems: `python -m experiments.classical --help`."""
