"""A request inside the engine: tokens, some of them computed. There are no phases."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence

from engine.core.extent import Extent
from engine.core.reading import PromptReading
from engine.core.terms import SLO, Lane, SamplingParams

NO_SLO = SLO(math.inf, math.inf)


# A token in `token_ids` that a step under way draws. Unknown tokens follow all known ones.
UNKNOWN = -1


class State(enum.Enum):
    """WAITING: has no row. BEHIND: has a row and more than one token to compute. DECODING: has one token to compute.
    ENDING: its last token is being drawn, and it holds nothing any more. DONE: has ended."""

    WAITING = "waiting"
    BEHIND = "behind"
    DECODING = "decoding"
    ENDING = "ending"
    DONE = "done"


class Request:
    """The mutable state of one request, owned by the scheduler.

    `token_ids` is the prompt followed by the output so far. The K and V of tokens [0, num_computed_tokens) are in
    `extents`, once the steps under way have ended. A step that computes the last token draws the next one.
    """

    __slots__ = (
        "arrival_s",
        "chat_mark_s",
        "deadline_s",
        "end_tokens",
        "extents",
        "first_scheduled_s",
        "first_token_s",
        "is_sheltered",
        "is_suspect",
        "lane",
        "last_step",
        "lost_mark_s",
        "num_cached_extents",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_lost_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "order",
        "priority",
        "reading",
        "request_id",
        "row",
        "sampling",
        "slo",
        "sort_key",
        "state",
        "tail",
        "token_ids",
        "tpot_slowdown",
        "ttft_slowdown",
    )

    def __init__(
        self,
        request_id: str,
        lane: Lane,
        prompt_token_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        arrival_s: float,
        slo: SLO | None = None,
        priority: int = 0,
        deadline_s: float | None = None,
    ) -> None:
        self.request_id = request_id
        self.lane = lane
        self.token_ids = list(prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0
        self.end_tokens = self.num_prompt_tokens + sampling.max_tokens  # prompt and output together, at most
        self.sampling = sampling
        self.arrival_s = arrival_s
        self.slo = slo or NO_SLO
        self.priority = priority
        self.deadline_s = deadline_s  # of the job of a BE request
        self.first_token_s: float | None = None
        self.first_scheduled_s: float | None = None
        self.chat_mark_s = self.lost_mark_s = 0.0  # sums of `Dial` when it arrived, or at its first token
        self.ttft_slowdown: float | None = None  # time lost to bulk, divided by the time without bulk
        self.tpot_slowdown: float | None = None
        self.row: int | None = None
        self.state = State.WAITING
        self.order = -1  # in which it arrived at the scheduler
        self.sort_key = (0.0, math.inf, -1)
        self.last_step = -1  # number of the last step that computed tokens of this request
        self.num_preemptions = 0
        self.num_lost_tokens = 0  # were computed, then taken away, and are not back yet
        self.is_suspect = (
            False  # an engine died while it computed this request: no other is computed together with it
        )
        self.reading: PromptReading | None = None
        if sampling.asks_about_prompt:
            self.reading = PromptReading(sampling, self.num_prompt_tokens)
        self.is_sheltered = False  # loses neither memory nor its row to others
        self.extents: list[Extent] = []
        self.tail: Extent | None = None  # the last of them
        self.num_cached_extents = 0  # how many extents, from the first on, are blocks of the prefix cache

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_known_tokens(self) -> int:
        """Number of tokens without those that steps under way draw."""
        token_ids, num_known = self.token_ids, len(self.token_ids)
        while num_known > self.num_prompt_tokens and token_ids[num_known - 1] == UNKNOWN:
            num_known -= 1
        return num_known

    def forget_unknown(self) -> None:
        """Remove the tokens that steps under way draw: their results will not come."""
        del self.token_ids[self.num_known_tokens :]
        if self.reading is not None:
            self.reading.lose_planned()

    @property
    def next_deadline_s(self) -> float:
        """Deadline of the request's next output token, by its SLO."""
        if self.first_token_s is None:
            return self.arrival_s + self.slo.ttft_s
        return self.first_token_s + self.slo.tpot_s * self.num_output_tokens

    @property
    def has_first_token_in_time(self) -> bool:
        return self.first_token_s is not None and self.first_token_s - self.arrival_s <= self.slo.ttft_s

    @property
    def num_uncomputed_tokens(self) -> int:
        """Number of tokens still to compute: one for a decoding request, more for a prompt or lost tokens."""
        return len(self.token_ids) - self.num_computed_tokens

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id!r}, {self.lane.name}, {self.num_computed_tokens}/{self.num_tokens} tokens, "
            f"{self.num_output_tokens} output)"
        )
