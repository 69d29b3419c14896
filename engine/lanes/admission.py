"""Admission: which requests may enter the engine, and which are rejected with what reason."""

from __future__ import annotations

import asyncio
import math

from engine.core.request import Request
from engine.core.terms import SLO, Lane
from engine.lanes.exchange import Exchange
from engine.wire.limits import EngineLimits
from engine.wire.protocol import Rejected, Submit, SubmitParts
from engine.wire.request_problems import problem_with_submit, problem_with_submit_parts

# Whoever names an SLO would rather be told early that it cannot be kept than wait.
NAMED_SLO_TTFT_FACTOR = 4.0
# Clients take a longer time for an error instead of waiting that long.
LONGEST_RETRY_S = 60
# Prompt tokens of the open requests of a lane together, about 300 MB. A prompt that is alone may have more.
MAX_OPEN_TOKENS = 8_000_000


class SocketAdmission:
    """Admits or rejects the requests that arrive over the socket, and counts the open and the rejected ones.

    A request that `limits` do not allow is rejected. Others are rejected while the open requests of their lane hold too
    many tokens, and an RT request also while `max_waiting_rt` of them are open, or if its predicted time to first token
    exceeds `max_ttft_factor` times its TTFT. If that factor is None, only requests that name such a time are rejected
    for the prediction.
    """

    def __init__(
        self,
        limits: EngineLimits,
        exchange: Exchange,
        max_waiting_rt: int,
        max_ttft_factor: float | None = None,
    ) -> None:
        self._limits = limits
        self._exchange = exchange
        self._max_waiting_rt = max_waiting_rt
        self._max_ttft_factor = max_ttft_factor
        self._draining = False
        self._no_open_rt = asyncio.Event()
        self._no_open_rt.set()
        self._num_open_tokens = dict.fromkeys(Lane, 0)  # BE keeps no RT request out
        self.num_open_rt = 0
        self.num_rejected = dict.fromkeys(("overloaded", "draining"), 0)  # by code

    def check(self, request: Submit | SubmitParts, slo: SLO) -> Rejected | None:
        """Return None if the request is admitted. Otherwise count the rejection and return it. `slo` is the one that
        the request names, or the default."""
        rejected = self._rejection(request, slo)
        if rejected is not None:
            self.count_rejected(rejected.code)
        return rejected

    def _rejection(self, request: Submit | SubmitParts, slo: SLO) -> Rejected | None:
        if self._draining:
            return Rejected(request.id, "draining", "the engine is shutting down", retry_after_s=5.0)
        num_tokens = num_distinct = len(request.token_ids)
        if isinstance(request, Submit):
            problem = problem_with_submit(request, self._limits)
        else:
            problem = problem_with_submit_parts(request, self._limits)
            num_own = sum(len(part.token_ids) for part in request.parts)
            num_tokens, num_distinct = num_tokens * len(request.parts) + num_own, num_tokens + num_own
        if problem is not None:
            return Rejected(request.id, problem.code, problem.message, param=problem.param)
        num_open = self._num_open_tokens[Lane(request.lane)]
        if num_open and num_open + num_tokens > MAX_OPEN_TOKENS:
            text = f"the prompts of the open requests have {num_open} tokens, and more would be too many"
            return self._overloaded(request, text, self._exchange.wait_s())
        if request.lane != "rt":
            return None
        if self.num_open_rt >= self._max_waiting_rt:
            text = f"{self.num_open_rt} chat requests are open, which is the limit"
            return self._overloaded(request, text, self._exchange.wait_s())
        factor = self._max_ttft_factor
        if factor is None and request.slo is not None and request.slo.slowdown is None:
            factor = NAMED_SLO_TTFT_FACTOR
        if factor is not None and (excess_s := self._exchange.excess_s(num_distinct, slo, factor)) > 0:
            text = "the engine has more chat requests than it can answer in time"
            return self._overloaded(request, text, excess_s)
        return None

    @staticmethod
    def _overloaded(request: Submit | SubmitParts, text: str, wait_s: float) -> Rejected:
        retry_after_s = min(max(1, math.ceil(wait_s)), LONGEST_RETRY_S)
        return Rejected(
            request.id, "overloaded", f"{text}; try again in {retry_after_s} s", float(retry_after_s)
        )

    def count_rejected(self, code: str) -> None:
        """Count a rejection."""
        self.num_rejected[code] = self.num_rejected.get(code, 0) + 1

    def count_started(self, request: Request) -> None:
        """Count a request as open."""
        self._num_open_tokens[request.lane] += request.num_prompt_tokens
        if request.lane is Lane.RT:
            self.num_open_rt += 1
            self._no_open_rt.clear()

    def count_ended(self, request: Request) -> None:
        """Count a request as no longer open."""
        self._num_open_tokens[request.lane] -= request.num_prompt_tokens
        if request.lane is Lane.RT:
            self.num_open_rt -= 1
            if not self.num_open_rt:
                self._no_open_rt.set()

    async def drain(self) -> None:
        """Reject all further requests, and wait until no RT request is open."""
        self._draining = True
        await self._no_open_rt.wait()
