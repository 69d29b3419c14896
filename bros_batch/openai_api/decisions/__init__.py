"""Questions about a text that are answered with probabilities: `/v1/decisions` and `/v1/systemone`."""
