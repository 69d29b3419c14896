"""Decisions in plain Python: which request computes how many tokens in the next step. No clock, no I/O."""
