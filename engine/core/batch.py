"""A step while it is being packed."""

from __future__ import annotations

from collections.abc import Sequence

from engine.core.cost_model import StepShape
from engine.core.plan import Restore, RowStart, StepPlan
from engine.core.request import Request, State
from engine.core.terms import Lane


class Batch:
    """Step number `number`, which begins at `now_s`: its plan so far, its shape, and how many tokens it may still take.
    It is scheduled at `scheduled_s`: sooner, if another is being computed."""

    def __init__(self, number: int, scheduled_s: float, now_s: float, max_tokens: int) -> None:
        self.number = number
        self.now_s = now_s
        self.plan = StepPlan(rows=[], starts=[], counts=[], samples=[], token_ids=[], slots=[])
        self.shape = StepShape()
        self.tokens_left = max_tokens
        self.num_be_tokens = 0
        self.has_preempted = False
        self.scheduled_s = scheduled_s
        # By index in the plan (of the first, for many).
        self.ending: list[tuple[int, Request]] = []  # that draw the last token they may have
        self.chunks: list[tuple[int, Request]] = []  # a prompt or a part of one
        self.singles: list[tuple[int, list[Request]]] = []  # one token each

    def start_row(self, request: Request, slots: list[int]) -> None:
        """The request has been given a row; `slots` are those of the tokens it has computed already."""
        assert request.row is not None
        self.plan.row_starts.append(
            RowStart(
                row=request.row,
                request_id=request.request_id,
                token_ids=request.token_ids.copy(),
                num_prompt_tokens=request.num_prompt_tokens,
                slots=slots,
                sampling=request.sampling,
            )
        )

    def restore(self, request: Request, start: int, slots: list[int], host_slots: list[int]) -> None:
        """The request's tokens from `start` on are back without being computed: by copies from `host_slots`, or, with
        none, because `slots` hold them already."""
        assert request.row is not None
        self.plan.restores.append(Restore(request.row, start, slots, host_slots))
        self.shape.copied += len(host_slots)

    def add(self, request: Request, slots: list[int]) -> None:
        """Compute the request's next len(slots) tokens."""
        plan, start, num_tokens = self.plan, request.num_computed_tokens, len(slots)
        assert request.row is not None and num_tokens
        end = start + num_tokens
        if request.state is State.DECODING:
            self.singles.append((len(plan.rows), [request]))
        else:
            self.chunks.append((len(plan.rows), request))
        plan.rows.append(request.row)
        plan.starts.append(start)
        plan.counts.append(num_tokens)
        plan.samples.append(end == len(request.token_ids))
        plan.token_ids.extend(request.token_ids[start:end])
        plan.slots.extend(slots)
        request.last_step = self.number
        self.shape.add_chunk(start, num_tokens)
        self._count(request.lane, num_tokens)

    def add_singles(self, requests: list[Request], starts: Sequence[int], slots: Sequence[int]) -> None:
        """Compute the last known token of each of these decoding requests of one lane; `starts` are their positions."""
        if not requests:
            return
        plan, number, num_rows = self.plan, self.number, len(requests)
        self.singles.append((len(plan.rows), requests))
        plan.rows.extend([request.row for request in requests])  # type: ignore[misc]  # they all have one
        plan.starts.extend(starts)
        plan.counts.extend([1] * num_rows)
        plan.samples.extend([True] * num_rows)
        plan.token_ids.extend([request.token_ids[-1] for request in requests])
        plan.slots.extend(slots)
        for request in requests:
            request.last_step = number
        self.shape.tokens += num_rows
        self.shape.rows += num_rows
        self.shape.context += sum(starts)
        self._count(requests[0].lane, num_rows)

    def _count(self, lane: Lane, num_tokens: int) -> None:
        self.tokens_left -= num_tokens
        if lane is Lane.BE:
            self.num_be_tokens += num_tokens
