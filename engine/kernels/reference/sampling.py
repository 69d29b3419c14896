"""Draws of tokens in simple PyTorch, row by row: the definition that tests compare the fast ones with."""

from __future__ import annotations

import torch


def kept(
    logits: torch.Tensor,  # [V]
    temperature: float,
    top_p: float,
    top_k: int,  # 0: off
    min_p: float,
) -> torch.Tensor:  # [V] float64
    """The weights of the tokens that may be drawn, relative to the likeliest token's; 0 for all others.

    top_k keeps the k likeliest tokens. Of these, top_p keeps the smallest number of likeliest tokens that together have
    a share p of their probability. Both also keep every token that is as likely as the last one kept. Of these, min_p
    keeps the tokens with at least min_p times the weight of the likeliest.
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
    """Draws each row's next token: the first in the vocabulary at which the cumulative kept weight exceeds `uniform`
    (0 to 1, 1 excluded) times their sum. At temperature 0 it is the likeliest token, the first one in a tie."""
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for i, row in enumerate(logits):
        temperature, top_p, top_k, min_p, uniform = numbers[:, i].tolist()
        if temperature == 0:
            tokens[i] = row.argmax()
            continue
        cumulative = kept(row, temperature, top_p, int(top_k), min_p).cumsum(0)
        tokens[i] = (cumulative > uniform * cumulative[-1]).nonzero()[0, 0]
    return tokens
