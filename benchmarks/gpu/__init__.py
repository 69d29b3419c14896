"""Everything that only a GPU host can show: `python -m benchmarks.gpu`."""
