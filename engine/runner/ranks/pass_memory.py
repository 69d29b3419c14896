"""Whether every rank has the memory for a forward pass, found out before any of them begins it.

In the middle of a pass ranks wait for each other's parts of sums: one that ran out of memory there would leave the
others waiting. So they try before, and go on together, with the whole pass or with a half of it:

    rank 0   tries: it has  |                        | half, half
                            | least: one has not     |
    rank 1   tries: it has not                       | half, half
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from engine.runner.ranks.tensor_parallel import Ranks


@dataclass(frozen=True, slots=True)
class LargestPass:
    """What a step can come to: so many tokens, after so many of which a token is drawn. `num_bytes` of the device are
    what a pass of that takes for itself; 0 where nobody can say."""

    num_tokens: int
    num_draws: int
    num_bytes: int

    def share(self, num_tokens: int, num_draws: int) -> float:
        """Of its memory, what a pass of these numbers takes at most: activations grow with the one, logits with the
        other."""
        return max(num_tokens / self.num_tokens, num_draws / self.num_draws)


class PassMemory:
    """One rank's side of the trial; all of them make the same calls. `take` gets so many bytes and gives them back, or
    raises torch.OutOfMemoryError."""

    def __init__(self, ranks: Ranks, largest: LargestPass, take: Callable[[int], None] | None = None) -> None:
        self._ranks = ranks
        self._largest = largest
        self._take = take or partial(_take, ranks.device)
        self._known_share = 0.0  # of the largest pass: what all ranks had the memory for

    def suffices(self, num_tokens: int, num_draws: int) -> bool:
        """Whether all ranks have what the pass takes. The ranks talk, and wait for their devices, only where it is
        larger than all that they had the memory for before."""
        share = self._largest.share(num_tokens, num_draws)
        if share <= self._known_share:
            return True
        if not self._ranks.least(int(self._can_take(share))):
            return False
        self._known_share = share
        return True

    def _can_take(self, share: float) -> bool:
        try:
            self._take(int(share * self._largest.num_bytes))
        except torch.OutOfMemoryError:
            return False
        return True


def _take(device: torch.device, num_bytes: int) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()  # of what smaller passes took; else torch would keep that besides
    torch.empty(num_bytes, dtype=torch.uint8, device=device)
