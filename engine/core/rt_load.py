"""How much work the RT lane has: prompt tokens still to compute, and what a typical request takes."""

from __future__ import annotations

from collections import OrderedDict

from engine.core.request import Request, State
from engine.core.terms import Lane

MEMORY = 1 / 16  # share of the latest request in the means


class RtLoad:
    """Counters of the RT lane, kept up to date in O(1) per chunk.

    A request that loses tokens is counted again when it next computes some: RT is preempted too rarely to matter here.
    """

    __slots__ = ("_counted", "mean_row_s", "mean_tokens", "num_tokens")

    def __init__(self) -> None:
        self.num_tokens = 0  # prompt tokens still to compute
        self.mean_row_s = 0.0  # from a request's first step to its end; 0 until one has ended
        self.mean_tokens = 0.0  # prompt and output of a request at its end
        self._counted: OrderedDict[Request, int] = OrderedDict()  # in order of arrival

    @property
    def oldest(self) -> Request | None:
        """The request that arrived first among those with tokens to compute."""
        return next(iter(self._counted), None)

    def count(self, request: Request) -> None:
        """Update the count after a request arrived or computed a chunk."""
        if request.lane is not Lane.RT:
            return
        is_behind = request.state is State.BEHIND or request.state is State.WAITING
        left = request.num_uncomputed_tokens if is_behind else 0
        self.num_tokens += left - self._counted.get(request, 0)
        if left:
            self._counted[request] = left
        else:
            self._counted.pop(request, None)

    def count_finished(self, request: Request, now_s: float) -> None:
        """Update the count and the means after a request ended for any reason."""
        self.count(request)
        if request.lane is Lane.RT and request.first_scheduled_s is not None:
            share = MEMORY if self.mean_tokens else 1.0
            self.mean_row_s += (now_s - request.first_scheduled_s - self.mean_row_s) * share
            self.mean_tokens += (request.num_tokens - self.mean_tokens) * share
