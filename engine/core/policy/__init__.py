"""Scheduling policies: how a step is packed, and who gives up memory for whom."""
