"""The speed of running jobs, from their counters a little earlier."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

from bros_batch.db.table_rows import Job
from bros_batch.web.engine_pace import EnginePace

WINDOW_S = 60.0
MAX_JOBS = 1000


@dataclass(frozen=True, slots=True)
class Rate:
    """Items and tokens per second; None while too little is known."""

    items_per_s: float | None = None
    tokens_per_s: float | None = None


class JobRates:
    """The latest counters of each running job, and the pace of the engine.

    A task looks at them each second, so a page that opens shows a rate at once.
    """

    def __init__(self) -> None:
        self.engine = EnginePace()
        self._seen: OrderedDict[str, deque[tuple[float, int, int]]] = OrderedDict()

    def observe(self, job: Job, now_s: float) -> Rate:
        """Record a job's counters, and return its rate over the last minute."""
        if job.status != "in_progress":
            self._seen.pop(job.id, None)
            return Rate()
        seen = self._seen.setdefault(job.id, deque())
        self._seen.move_to_end(job.id)
        while len(self._seen) > MAX_JOBS:
            self._seen.popitem(last=False)
        tokens = job.prompt_tokens + job.output_tokens
        if not job.ended:
            seen.clear()  # the time in which a job waits for its turn says nothing about its speed
        if not seen or now_s - seen[-1][0] >= 0.5:
            seen.append((now_s, job.ended, tokens))
        while len(seen) > 2 and seen[1][0] < now_s - WINDOW_S:
            seen.popleft()
        then_s, then_ended, then_tokens = seen[0]
        elapsed_s = now_s - then_s
        if elapsed_s < 1.0 or job.ended < then_ended:
            return Rate()
        return Rate((job.ended - then_ended) / elapsed_s, (tokens - then_tokens) / elapsed_s)
