"""Measurements that need a GPU host: `python -m benchmarks.gpu`."""
