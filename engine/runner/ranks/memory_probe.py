"""Finds out whether every rank has the memory for a forward pass, before any of them begins it.

In the middle of a pass the ranks wait for each other's parts of sums. One that ran out of memory there would leave the
others waiting. So each tries beforehand, and they go on together, with the whole pass or with half of it:

    rank 0   tries, succeeds | minimum over the ranks: | half, half
    rank 1   tries, fails    | not all succeeded       | half, half
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from engine.runner.ranks.tensor_parallel import Ranks


@dataclass(frozen=True, slots=True)
class LargestPass:
    """The largest forward pass that a step can need, with `num_draws` of its tokens followed by a draw.

    It takes `num_bytes` of device memory; 0 if that is unknown.
    """

    num_tokens: int
    num_draws: int
    num_bytes: int

    def share(self, num_tokens: int, num_draws: int) -> float:
        """The largest share of the memory that a smaller pass needs. Activations grow with its tokens, logits with its
        draws."""
        return max(num_tokens / self.num_tokens, num_draws / self.num_draws)


class MemoryProbe:
    """One rank's part in the trial; all ranks make the same calls.

    `allocate` allocates a number of bytes and frees them again, or raises torch.OutOfMemoryError.
    """

    def __init__(
        self, ranks: Ranks, largest: LargestPass, allocate: Callable[[int], None] | None = None
    ) -> None:
        self._ranks = ranks
        self._largest = largest
        self._allocate = allocate or partial(_allocate, ranks.device)
        self._known_share = 0.0  # of the largest pass: all ranks had memory for this much

    def suffices(self, num_tokens: int, num_draws: int) -> bool:
        """Whether all ranks have the memory for the pass.

        Ranks communicate, and wait for their devices, only if the pass is larger than all that they had memory for.
        """
        share = self._largest.share(num_tokens, num_draws)
        if share <= self._known_share:
            return True
        if not self._ranks.minimum(int(self._can_allocate(share))):
            return False
        self._known_share = share
        return True

    def _can_allocate(self, share: float) -> bool:
        try:
            self._allocate(int(share * self._largest.num_bytes))
        except torch.OutOfMemoryError:
            return False
        return True


def _allocate(device: torch.device, num_bytes: int) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()  # otherwise torch would keep the memory of smaller passes as well
    torch.empty(num_bytes, dtype=torch.uint8, device=device)
