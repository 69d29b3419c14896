"""A request inside the engine: some tokens, some of them computed. There is no phase."""

from __future__ import annotations

from collections.abc import Sequence

from engine.core.blocks import Extent
from engine.core.types import SLO, Lane, SamplingParams


class Request:
    """Mutable state of one request; owned by the scheduler.

    `token_ids` is the prompt followed by the output so far. Tokens [0, num_computed_tokens) have their K and V
    in `extents`. A request is due for sampling when a step computes its last known token.
    """

    __slots__ = (
        "arrival_s",
        "deadline_s",
        "extents",
        "first_scheduled_s",
        "first_token_s",
        "lane",
        "last_step",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "order",
        "priority",
        "request_id",
        "row",
        "sampling",
        "slo",
        "token_ids",
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
        self.num_preemptions = 0
        self.sampling = sampling
        self.arrival_s = arrival_s
        self.slo = slo
        self.priority = priority
        self.deadline_s = deadline_s
        self.first_token_s: float | None = None
        self.first_scheduled_s: float | None = None
        self.row: int | None = None
        self.order = -1  # of arrival at the scheduler; breaks ties, also after losing a row
        self.last_step = -1  # number of the last step that computed tokens of this request
        self.extents: list[Extent] = []

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id!r}, {self.lane.name}, {self.num_computed_tokens}/{self.num_tokens} tokens, "
            f"{self.num_output_tokens} output)"
        )
