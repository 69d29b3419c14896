"""Models: from a checkpoint to the logits of one packed forward pass."""
