"""The outlook for a new chat: its predicted time to first token, to decide whether it has to be rejected.

    predicted = rest of the step under way + RT work that is ahead of it + its own prompt

The work ahead takes as long as the scarcest of time, rows and memory requires. The prediction assumes first come, first
served. If deadlines let newcomers go first, others wait instead: no chat is admitted while one of them has waited
beyond the same bound. Otherwise those that are late already would wait for as long as new ones arrive.
"""

from __future__ import annotations

from typing import NamedTuple

from engine.core.batch import MIN_CHUNK_TOKENS
from engine.core.cost_model import StepShape
from engine.core.scheduler import Scheduler
from engine.core.terms import SLO, Lane


class Outlook(NamedTuple):
    """What a new RT request finds after a step. Immutable, for other threads to read. A tuple, because there is one per
    step.

    The main loop has received `num_received` requests with `num_received_tokens` prompt tokens since its start.
    Requests sent beyond those are on their way, and ahead of a new one. Times are in seconds.
    """

    num_received: int = 0
    num_received_tokens: int = 0
    step_s: float = 0.0  # longest time that the step under way can still take
    token_s: float = 0.0  # share of a prompt token in the time of a step full of them
    backlog_tokens: int = 0
    num_requests: int = 0  # RT requests, with a row or waiting for one
    room: float = 1.0  # number of RT requests that there are rows and memory for
    row_s: float = 0.0  # mean time that one of them holds its row
    waited_s: float = 0.0  # by the oldest request without a first token, so far
    slo_s: float = 0.0  # TTFT of that request by its SLO, or the time its prompt takes if that is longer

    def wait_s(self, num_requests: int, num_tokens: int) -> float:
        """How long a new request waits for the RT requests ahead of it: `num_requests` more requests with `num_tokens`
        tokens than are counted here. Rows and memory become free at the rate at which requests end."""
        before = self.num_requests + num_requests
        generations = max(0.0, (before + 1) / self.room - 1) if before else 0.0
        return max((self.backlog_tokens + num_tokens) * self.token_s, generations * self.row_s)

    def excess_s(
        self, prompt_tokens: int, slo: SLO, max_ttft_factor: float, num_sent: int, num_sent_tokens: int
    ) -> float:
        """By how much the predicted TTFT of a new prompt exceeds `max_ttft_factor` times the TTFT of its SLO.

        If the prompt takes longer than its SLO even without other RT requests, that time counts instead, so that a
        prompt that is alone is never rejected. A prompt with a positive excess would be admitted about that much later
        if no others arrive. `num_sent` requests have been sent to the main loop so far."""
        alone_s = self.step_s + prompt_tokens * self.token_s
        wait_s = self.wait_s(num_sent - self.num_received, num_sent_tokens - self.num_received_tokens)
        excess_s = alone_s + wait_s - max_ttft_factor * max(slo.ttft_s, alone_s)
        if self.waited_s > max_ttft_factor * self.slo_s:
            return max(excess_s, wait_s)
        return excess_s


def outlook(scheduler: Scheduler, now_s: float, num_received: int, num_received_tokens: int) -> Outlook:
    """The state of the scheduler as a new request finds it at `now_s`."""
    backlog, load, config = scheduler.backlog, scheduler.rt_load, scheduler.config
    decoding = len(backlog.decoding[Lane.RT])
    # A step full of prompt tokens, as the policy packs it: one token for each decoding request, and no longer than the
    # deadline of their next tokens allows.
    shape = StepShape(tokens=decoding, rows=decoding, context=int(decoding * load.mean_tokens))
    room = max(MIN_CHUNK_TOKENS, config.max_num_batched_tokens - decoding)
    chunk = scheduler.cost_model.chunk_tokens(shape, config.default_slo.tpot_s, 0, room)
    chunk = max(chunk, MIN_CHUNK_TOKENS)
    shape.add_chunk(0, chunk)
    token_s = scheduler.cost_model.predict(shape) / chunk
    num_rows = config.max_num_seqs - backlog.min_be_rows
    oldest, waited_s, slo_s = load.oldest, 0.0, 0.0
    if oldest is not None and oldest.first_token_s is None:
        waited_s = now_s - oldest.arrival_s
        slo_s = max(oldest.slo.ttft_s, oldest.num_prompt_tokens * token_s)
    return Outlook(
        num_received,
        num_received_tokens,
        max(scheduler.pace.cap_s, scheduler.pace.limit_s) if scheduler.has_work else 0.0,
        token_s,
        load.num_tokens,
        decoding + len(backlog.behind[Lane.RT]) + backlog.num_waiting[Lane.RT],
        min(num_rows, scheduler.kv.num_slots / load.mean_tokens) if load.mean_tokens else num_rows,
        load.mean_row_s,
        waited_s,
        slo_s,
    )
