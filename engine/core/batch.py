"""A step while it is being packed."""

from __future__ import annotations

from collections.abc import Sequence

from engine.core.cost_model import StepShape
from engine.core.extent import Key
from engine.core.plan import Restore, RowStart, SlotCopy, StepPlan
from engine.core.request import Request, State
from engine.core.terms import Lane

# A chunk shorter than this is left for the next step: it occupies a row and takes almost as long as a longer one.
MIN_CHUNK_TOKENS = 16


class Batch:
    """The plan of step `number` so far, its shape, and how many tokens it may still take.

    The step is scheduled at `scheduled_s` and begins at `now_s`, which is later if another one is being computed.
    """

    def __init__(self, number: int, scheduled_s: float, now_s: float, max_tokens: int) -> None:
        self.number = number
        self.now_s = now_s
        self.plan = StepPlan(rows=[], starts=[], counts=[], samples=[], token_ids=[], slots=[])
        self.shape = StepShape()
        self.chat_shape = StepShape()  # of its RT rows alone
        self.min_chunk_tokens = MIN_CHUNK_TOKENS
        self.tokens_left = max_tokens
        self._num_set_aside = 0
        self.num_be_tokens = 0
        self.has_preempted = False
        self.claims: set[Key] = set()  # blocks that requests with a common beginning wait for
        self.scheduled_s = scheduled_s
        # With the index of their row in the plan; for `singles`, the index of the first.
        self.ending: list[tuple[int, Request]] = []  # requests that draw the last token they may have
        self.chunks: list[tuple[int, Request]] = []  # requests that compute a prompt or a part of one
        self.singles: list[tuple[int, list[Request]]] = []  # requests that compute one token each

    def set_aside(self, num_tokens: int) -> None:
        """Keep this many tokens of the budget from what is added next; 0 makes all of it available again."""
        self.tokens_left += self._num_set_aside - num_tokens
        self._num_set_aside = num_tokens

    def add_copies_out(self, copies: list[SlotCopy]) -> None:
        """Copy these slots to the host before anything else in the step."""
        self.plan.copies_out.extend(copies)
        self.shape.copied += sum(len(copy.host_slots) for copy in copies)

    def start_row(self, request: Request, slots: list[int]) -> None:
        """The request has been given a row. `slots` hold the tokens that it has computed already."""
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
        """The request has its tokens from `start` on without computing them: they are copied from `host_slots`, or, if
        there are none, `slots` hold them already."""
        assert request.row is not None
        self.plan.restores.append(Restore(request.row, start, slots, host_slots))
        self.shape.copied += len(host_slots)

    def copy_beginning(self, request: Request, start: int, slots: list[int], known_slots: list[int]) -> None:
        """The request has its tokens from `start` on without computing them: they are copied from the known slots. The
        step has something for the request, which therefore loses nothing to others before the copy is carried out."""
        assert request.row is not None
        self.plan.restores.append(Restore(request.row, start, slots, [], known_slots))
        request.last_step = self.number

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
        plan.samples.append(len(request.token_ids) == end < request.end_tokens)
        if request.reading is not None and (positions := request.reading.plan(start, end)) is not None:
            plan.reads[len(plan.rows) - 1] = positions
        plan.token_ids.extend(request.token_ids[start:end])
        plan.slots.extend(slots)
        request.last_step = self.number
        self.shape.add_chunk(start, num_tokens)
        if request.lane is Lane.RT:
            self.chat_shape.add_chunk(start, num_tokens)
        self._count(request.lane, num_tokens)

    def add_singles(self, requests: list[Request], starts: Sequence[int], slots: Sequence[int]) -> None:
        """Compute the last token of each of these decoding requests of one lane. `starts` are the positions of the
        tokens."""
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
        context = sum(starts)
        self.shape.context += context
        if requests[0].lane is Lane.RT:
            self.chat_shape.tokens += num_rows
            self.chat_shape.rows += num_rows
            self.chat_shape.context += context
        self._count(requests[0].lane, num_rows)

    def _count(self, lane: Lane, num_tokens: int) -> None:
        self.tokens_left -= num_tokens
        if lane is Lane.BE:
            self.num_be_tokens += num_tokens
