"""The dial: how much slower bulk may make a chat than it would be on an engine without bulk.

The reference is this engine with the same chats and no bulk. The cost model says for each step how long its chat tokens
alone would have taken (`chat_s`); the rest of the step is what bulk cost the chats that were there (`lost_s`). Both are
summed over all steps, so what a chat has lost since some moment is the difference of two sums. A chat with the slowdown
s loses at most s times its time on the reference, separately until its first token and from then on. The queue behind
other chats is part of the reference.

A step cannot be interrupted. A chat that arrives loses what is left of the bulk in the step under way, so no step has
more bulk than 99 of the latest 100 chats could bear. When that is less than any step takes, bulk runs only beside chats
and after a silence (`engine.core.policy.pace.QUIET_S`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from engine.core.request import Request

# What the most sensitive of so many chats could bear limits the bulk of a step.
RECENT_CHATS = 100
# Bulk takes this share of what it may, because predictions are not exact.
SAFETY = 0.9
INFINITE = float("inf")


class Dial:
    """Counts what bulk costs the chats, and how much more it may. Times are in seconds."""

    def __init__(self) -> None:
        self._chat_s = self._lost_s = 0.0  # of the steps that have ended
        self._planned: deque[tuple[float, float]] = (
            deque()
        )  # (chat_s, lost_s) of those under way, by prediction
        self._end_s = -INFINITE  # of the latest step, predicted while it is under way
        self._last_lost_s = 0.0  # of the latest step
        self._bearable: deque[float] = deque(maxlen=RECENT_CHATS)
        self._num_open = 0  # chats with a slowdown that have not ended
        self.bearable_s = INFINITE  # the most bulk in a step that an arriving chat can bear

    @property
    def is_used(self) -> bool:
        """Whether there is or was lately a chat with a slowdown."""
        return self._num_open > 0 or self.bearable_s < INFINITE

    # Steps ----------------------------------------------------------------------------------------------

    def plan_step(self, chat_s: float, step_s: float, end_s: float) -> None:
        """Count a step that is planned: predicted to take `step_s` and to end at `end_s`, and `chat_s` without bulk."""
        self._last_lost_s = max(0.0, step_s - chat_s)
        self._planned.append((step_s - self._last_lost_s, self._last_lost_s))
        self._end_s = end_s

    def end_step(self, elapsed_s: float, now_s: float) -> None:
        """The oldest planned step has ended. What it took is divided as predicted: noise is nobody's fault."""
        chat_s, lost_s = self._planned.popleft()
        share = lost_s / (chat_s + lost_s) if lost_s else 0.0
        self._lost_s += share * elapsed_s
        self._chat_s += (1 - share) * elapsed_s
        if not self._planned:
            self._end_s = now_s
            self._last_lost_s = share * elapsed_s

    def forget_planned(self) -> None:
        """The steps under way will not end."""
        self._planned.clear()

    def _totals(self) -> tuple[float, float]:
        """Time for chats and time lost, with the steps under way."""
        chat_s, lost_s = self._chat_s, self._lost_s
        for planned_chat_s, planned_lost_s in self._planned:
            chat_s += planned_chat_s
            lost_s += planned_lost_s
        return chat_s, lost_s

    # Chats ----------------------------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """A chat arrived. Of the step under way at that moment, it loses the bulk that was left."""
        waits_s = max(0.0, self._end_s - request.arrival_s)
        lost_s = min(self._last_lost_s, waits_s)
        chat_total_s, lost_total_s = self._totals()
        request.chat_mark_s = chat_total_s - (waits_s - lost_s)
        request.lost_mark_s = lost_total_s - lost_s
        self._num_open += request.slo.slowdown is not None

    def count_first_token(self, request: Request) -> None:
        """A chat got its first token. What it loses from now on is counted anew."""
        chat_s = self._chat_s - request.chat_mark_s
        request.ttft_slowdown = self._slowdown(request)
        request.chat_mark_s, request.lost_mark_s = self._chat_s, self._lost_s
        slowdown = request.slo.slowdown
        if slowdown is not None or self._bearable:
            self._bearable.append(INFINITE if slowdown is None else SAFETY * slowdown * chat_s)
            self.bearable_s = min(self._bearable)

    def finish(self, request: Request) -> None:
        """A chat has ended."""
        if request.first_token_s is not None and request.num_output_tokens > 1:
            request.tpot_slowdown = self._slowdown(request)
        self._num_open -= request.slo.slowdown is not None

    def _slowdown(self, request: Request) -> float | None:
        chat_s = self._chat_s - request.chat_mark_s
        return max(0.0, self._lost_s - request.lost_mark_s) / chat_s if chat_s > 0 else None

    # Limits ---------------------------------------------------------------------------------------------

    def may_lose_s(self, chats: Iterable[Request], chat_s: float) -> float:
        """How long the bulk of the next step may take if its chat tokens alone take `chat_s`; less than 0 if one of
        `chats` has lost too much already. Infinite if no chat has a slowdown."""
        left_s = self.bearable_s
        if not self._num_open:
            return left_s
        chat_total_s, lost_total_s = self._totals()
        chat_total_s += chat_s
        for request in chats:
            slowdown = request.slo.slowdown
            if slowdown is not None:
                allowed_s = SAFETY * slowdown * (chat_total_s - request.chat_mark_s)
                left_s = min(left_s, allowed_s - (lost_total_s - request.lost_mark_s))
        return left_s
