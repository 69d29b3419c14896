"""Kernels: one operation, several backends, chosen by `dispatch`."""
