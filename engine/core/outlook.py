"""When to refuse a chat: its time to first token is predicted and held against what it was promised.

    predicted = the step under way + the RT work before it + its own prompt

The work before it waits for time, for rows or for memory, whichever is scarcest. Predicted is the wait of first come,
first served. Where deadlines let newcomers go first, others wait instead: nobody is let in while one of them has waited
beyond the same bound, or the hopeless would wait for as long as new ones come.
"""

from __future__ import annotations

from typing import NamedTuple

from engine.core.allocator import MIN_CHUNK_TOKENS
from engine.core.cost_model import StepShape
from engine.core.scheduler import Scheduler
from engine.core.terms import SLO, Lane


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
    room: float = 1.0  # how many requests there are rows and memory for
    row_s: float = 0.0  # mean time that one of them holds its row
    waited_s: float = 0.0  # so far, by the first to come of those without a first token
    slo_s: float = 0.0  # to that one, or what its prompt takes if that is longer

    def wait_s(self, num_requests: int, num_tokens: int) -> float:
        """How long a newcomer waits for RT requests before it, `num_requests` with `num_tokens` more than are counted
        here. Rows and memory come free at the rate at which requests end."""
        before = self.num_requests + num_requests
        generations = max(0.0, (before + 1) / self.room - 1) if before else 0.0
        return max((self.backlog_tokens + num_tokens) * self.token_s, generations * self.row_s)

    def excess_s(
        self, prompt_tokens: int, slo: SLO, max_ttft_factor: float, num_sent: int, num_sent_tokens: int
    ) -> float:
        """By how much a new prompt's predicted TTFT is beyond `max_ttft_factor` times what it was promised, or what it
        takes without other RT requests, if that is longer: one that is alone is never refused. Above 0, it would be let
        in about so much later, if nobody else comes. `num_sent` requests have been sent to the main loop so far."""
        alone_s = self.step_s + prompt_tokens * self.token_s
        wait_s = self.wait_s(num_sent - self.num_received, num_sent_tokens - self.num_received_tokens)
        excess_s = alone_s + wait_s - max_ttft_factor * max(slo.ttft_s, alone_s)
        if self.waited_s > max_ttft_factor * self.slo_s:
            return max(excess_s, wait_s)
        return excess_s


def outlook(scheduler: Scheduler, now_s: float, num_received: int, num_received_tokens: int) -> Outlook:
    """The scheduler's state as a newcomer finds it at `now_s`."""
    backlog, load, config = scheduler.backlog, scheduler.rt_load, scheduler.config
    decoding = len(backlog.decoding[Lane.RT])
    # A step full of prompt, as the packer fills it: a token for all that decode, and no longer than their next is due.
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
        scheduler.pace.cap_s if scheduler.has_work else 0.0,
        token_s,
        load.num_tokens,
        decoding + len(backlog.behind[Lane.RT]) + backlog.num_waiting[Lane.RT],
        min(num_rows, scheduler.kv.num_slots / load.mean_tokens) if load.mean_tokens else num_rows,
        load.mean_row_s,
        waited_s,
        slo_s,
    )
