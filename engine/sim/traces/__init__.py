"""Traces for the simulator: which requests arrive when, and how long they are."""
