"""Sampling: from logits to tokens, and the decision which of them end their request."""
