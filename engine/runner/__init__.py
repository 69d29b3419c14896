"""Computation: a runner carries out the plan of a step and returns the sampled tokens."""
