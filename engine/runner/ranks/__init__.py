"""Tensor parallelism: one model split over several devices, with one process per device."""
