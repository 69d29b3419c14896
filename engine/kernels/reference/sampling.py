"""Random draws, slow and obvious, a row at a time: what the fast ones must agree with."""

from __future__ import annotations

import torch


def kept(
    logits: torch.Tensor,  # [V]
    temperature: float,
    top_p: float,
    top_k: int,  # 0: off
    min_p: float,
) -> torch.Tensor:  # [V] float64
    """The weights of the tokens that may be drawn, the likeliest's 1; 0 for the others.

    top_k keeps the k likeliest tokens, top_p the fewest likeliest of these that have together p of their probability,
    and both every token as likely as the last one kept; min_p keeps of these what has min_p of the likeliest's.
    """
    weights = ((logits.double() - logits.double().max()) / temperature).exp()
    if 0 < top_k < len(weights):
        weights[weights < weights.sort(descending=True).values[top_k - 1]] = 0
    if top_p < 1:
        descending = weights.sort(descending=True).values
        reaches = descending.cumsum(0) >= top_p * weights.sum()
        weights[weights < descending[int(reaches.nonzero()[0])]] = 0
    weights[weights < min_p] = 0
    return weights


def draw(
    logits: torch.Tensor,  # [n, V]
    numbers: torch.Tensor,  # [5, n] float64 temperature (0: the likeliest), top_p, top_k (0: off), min_p, uniform
) -> torch.Tensor:  # [n] int64
    """Each row's next token: the first in the vocabulary at which the kept weights so far exceed `uniform` (0 to 1, 1
    excluded) of them all. At temperature 0 the likeliest, the first among equals."""
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for i, row in enumerate(logits):
        temperature, top_p, top_k, min_p, uniform = numbers[:, i].tolist()
        if temperature == 0:
            tokens[i] = row.argmax()
            continue
        cumulative = kept(row, temperature, top_p, int(top_k), min_p).cumsum(0)
        tokens[i] = (cumulative > uniform * cumulative[-1]).nonzero()[0, 0]
    return tokens
