"""When to refuse a chat: its time to first token is predicted and held against what it was promised.

    predicted = the step under way + the RT work before it + its own prompt

The work before it waits for time, for rows or for memory, whichever is scarcest. Predicted is the wait of first come,
first served: where deadlines let a newcomer go first, somebody else waits instead, and it is his promise that breaks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from engine.core.cost_model import StepShape
from engine.core.packer import MIN_CHUNK_TOKENS
from engine.core.request import Request, State
from engine.core.types import SLO, Lane

if TYPE_CHECKING:
    from engine.core.scheduler import Scheduler

ROW_MEMORY = 1 / 32  # share of the latest request in the mean time that one holds its row


class RtBacklog:
    """RT prompt tokens still to compute, counted as they change: O(1) a chunk. Owned by the scheduler.

    A request that loses tokens is counted anew when it next computes some: preempting RT is too rare to matter here.
    """

    __slots__ = ("_counted", "num_tokens", "row_s")

    def __init__(self) -> None:
        self.num_tokens = 0
        self.row_s = 0.0  # mean time from a request's first step to its end; 0 until one has ended
        self._counted: dict[Request, int] = {}

    def count(self, request: Request) -> None:
        """The request has come, or a chunk of it was computed."""
        if request.lane is not Lane.RT:
            return
        is_behind = request.state is State.BEHIND or request.state is State.WAITING
        left = request.num_uncomputed_tokens if is_behind else 0
        self.num_tokens += left - self._counted.pop(request, 0)
        if left:
            self._counted[request] = left

    def count_finished(self, request: Request, now_s: float) -> None:
        """The request has ended, one way or another."""
        self.count(request)
        if request.lane is Lane.RT and request.first_scheduled_s is not None:
            held_s = now_s - request.first_scheduled_s
            self.row_s += (held_s - self.row_s) * (ROW_MEMORY if self.row_s else 1.0)


class Outlook(NamedTuple):
    """What a new RT request finds, after a step; immutable, for other threads to read. A tuple: there is one a step.

    `num_received` requests with `num_received_tokens` prompt tokens have ever reached the main loop: what was sent
    beyond them is on its way, and before the newcomer. Times in seconds.
    """

    num_received: int = 0
    num_received_tokens: int = 0
    step_s: float = 0.0  # the most that is left of the step under way
    token_s: float = 0.0  # a prompt token's share of a step full of them
    backlog_tokens: int = 0
    num_requests: int = 0  # with a row, or waiting for one
    num_rows: int = 1  # that RT may have
    row_s: float = 0.0
    used_slots: int = 0  # KV memory that RT holds
    num_slots: int = 1

    def wait_s(self, num_requests: int, num_tokens: int, prompt_tokens: int) -> float:
        """How long a prompt waits for RT requests before it, `num_requests` with `num_tokens` more than are counted
        here. Rows and memory come free at the rate at which requests end."""
        backlog_tokens = self.backlog_tokens + num_tokens
        more_rows = self.num_requests + num_requests + 1 - self.num_rows
        more_slots = self.used_slots + backlog_tokens + prompt_tokens - self.num_slots
        is_first = not (self.num_requests or num_requests)
        scarcity = 0.0 if is_first else max(more_rows / self.num_rows, more_slots / self.num_slots, 0.0)
        return max(backlog_tokens * self.token_s, scarcity * self.row_s)

    def excess_s(
        self, prompt_tokens: int, slo: SLO, max_ttft_factor: float, num_sent: int, num_sent_tokens: int
    ) -> float:
        """By how much a new prompt's predicted TTFT is beyond `max_ttft_factor` times what it was promised, or what it
        takes on an engine that has nothing else to do, if that is longer. Let it in unless that is above 0; else it
        will be let in so much later, if nobody else comes. `num_sent` requests have been sent to the main loop so far.
        """
        alone_s = self.step_s + prompt_tokens * self.token_s
        wait_s = self.wait_s(
            num_sent - self.num_received, num_sent_tokens - self.num_received_tokens, prompt_tokens
        )
        return alone_s + wait_s - max_ttft_factor * max(slo.ttft_s, alone_s)


def outlook(scheduler: Scheduler, num_received: int, num_received_tokens: int) -> Outlook:
    """The scheduler's state as a newcomer finds it."""
    running, kv, config = scheduler.running, scheduler.kv, scheduler.config
    decoding = len(running.decoding[Lane.RT])
    used_slots = kv.usage()[Lane.RT] * kv.block_size
    # A step full of prompt, as the packer fills it: a token for all that decode, and no longer than their next is due.
    shape = StepShape(tokens=decoding, rows=decoding, context=used_slots)
    room = max(MIN_CHUNK_TOKENS, config.max_num_batched_tokens - decoding)
    chunk = scheduler.cost_model.chunk_tokens(shape, config.default_slo.tpot_s, 0, room)
    chunk = max(chunk, MIN_CHUNK_TOKENS)
    shape.add_chunk(0, chunk)
    return Outlook(
        num_received,
        num_received_tokens,
        scheduler.pace.cap_s if scheduler.has_work else 0.0,
        scheduler.cost_model.predict(shape) / chunk,
        scheduler.rt_backlog.num_tokens,
        running.num_rows_of(Lane.RT) + running.num_waiting[Lane.RT],
        config.max_num_seqs - running._min_be_rows,
        scheduler.rt_backlog.row_s,
        used_slots,
        kv.num_slots,
    )
