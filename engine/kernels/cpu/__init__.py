"""Kernels for CPUs, compiled by numba, with a fallback to torch."""
