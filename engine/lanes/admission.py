"""Admission: which requests may enter the engine, and which are rejected with what reason."""

from __future__ import annotations

import asyncio
import math

from engine.core.terms import SLO, Lane
from engine.lanes.exchange import Exchange
from engine.wire.limits import EngineLimits, problem_with_submit
from engine.wire.protocol import Rejected, Submit


class SocketAdmission:
    """Admits or rejects the requests that arrive over the socket, and counts the open and the rejected ones.

    A request that `limits` do not allow is rejected. An RT request is also rejected while `max_waiting_rt` of them are
    open, and if its predicted time to first token exceeds `max_ttft_factor` times the TTFT of its SLO.
    """

    def __init__(
        self, limits: EngineLimits, exchange: Exchange, max_waiting_rt: int, max_ttft_factor: float = 4.0
    ) -> None:
        self._limits = limits
        self._exchange = exchange
        self._max_waiting_rt = max_waiting_rt
        self._max_ttft_factor = max_ttft_factor
        self._draining = False
        self._no_open_rt = asyncio.Event()
        self._no_open_rt.set()
        self.num_open_rt = 0
        self.num_rejected = dict.fromkeys(("overloaded", "draining"), 0)  # by code

    def check(self, request: Submit, slo: SLO) -> Rejected | None:
        """Return None if the request is admitted. Otherwise count the rejection and return it."""
        rejected = self._rejection(request, slo)
        if rejected is not None:
            self.count_rejected(rejected.code)
        return rejected

    def _rejection(self, request: Submit, slo: SLO) -> Rejected | None:
        if self._draining:
            return Rejected(request.id, "draining", "the engine is shutting down", retry_after_s=5.0)
        problem = problem_with_submit(request, self._limits)
        if problem is not None:
            return Rejected(request.id, problem.code, problem.message, param=problem.param)
        if request.lane != "rt":
            return None
        if self.num_open_rt >= self._max_waiting_rt:
            text = f"{self.num_open_rt} chat requests are open, which is the limit; try again soon"
            return Rejected(request.id, "overloaded", text, retry_after_s=1.0)
        excess_s = self._exchange.excess_s(len(request.token_ids), slo, self._max_ttft_factor)
        if excess_s > 0:
            retry_after_s = float(max(1, math.ceil(excess_s)))
            text = (
                "the engine has more chat requests than it can answer in time; "
                f"try again in {retry_after_s:.0f} s"
            )
            return Rejected(request.id, "overloaded", text, retry_after_s)
        return None

    def count_rejected(self, code: str) -> None:
        """Count a rejection."""
        self.num_rejected[code] = self.num_rejected.get(code, 0) + 1

    def count_started(self, lane: Lane) -> None:
        """Count a request as open."""
        if lane is Lane.RT:
            self.num_open_rt += 1
            self._no_open_rt.clear()

    def count_ended(self, lane: Lane) -> None:
        """Count a request as no longer open."""
        if lane is Lane.RT:
            self.num_open_rt -= 1
            if not self.num_open_rt:
                self._no_open_rt.set()

    async def drain(self) -> None:
        """Reject all further requests, and wait until no RT request is open."""
        self._draining = True
        await self._no_open_rt.wait()
