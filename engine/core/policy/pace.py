"""The time limit of the next step, which the deadlines of the chats set, and the tokens owed to bulk in any case."""

from __future__ import annotations

from collections.abc import Iterable

from engine.core.request import Request
from engine.core.terms import SLO

# Steps aim to end a little before deadlines, because a token takes some time to reach its reader: at this share of the
# time to first token.
TTFT_SAFETY = 0.9
# For later tokens, at this share of the time since the first token, but earlier by at most this share of the TPOT: the
# hundredth token of an answer needs no longer to reach its reader than the third.
TPOT_SAFETY, TPOT_MOST_EARLY = 0.9, 0.6
# Shares of the default TTFT: the start, the minimum and the growth of the cap, the longest step that an arriving RT
# request may have to wait for. With a start of a half, requests that arrived together were late: their prompts need
# time as well.
CAP_START, CAP_FLOOR, CAP_GROWTH = 1 / 3, 0.02, 0.002
CAP_SHRINK = 0.7
# A step that computes a first token aims to end before this share of the TTFT has passed: people wait for that token
# most. If it is too late for that, the step still takes this share of the TPOT.
TTFT_AIM = 0.5
FIRST_TOKEN_PACE = 0.5
# Late first tokens within this time count once: the same long step may have delayed them.
MISS_WINDOW_S = 2.0
# Steps are shortened by the running error of the cost model, but by at least and at most these shares.
MARGIN_LEAST, MARGIN_MOST = 0.02, 0.2


def aimed_deadline_s(request: Request) -> float:
    """When the request's next token has to be computed to meet its deadline with a little time to spare. Infinite while
    its first token is under way: the deadline of the second one depends on it."""
    if request.first_token_s is None:
        if request.num_output_tokens:
            return float("inf")
        return request.arrival_s + TTFT_SAFETY * request.slo.ttft_s
    since_first_s = request.next_deadline_s - request.first_token_s
    return request.next_deadline_s - min(
        (1 - TPOT_SAFETY) * since_first_s, TPOT_MOST_EARLY * request.slo.tpot_s
    )


class Pace:
    """Computes the limits of steps. Times are in seconds.

    `cap_s` limits every step, even without deadlines, because a request may arrive while the step runs. It shrinks by a
    factor when first tokens are late and grows by small amounts while they are in time, as TCP's congestion window does
    (RFC 5681).
    """

    def __init__(self, default_slo: SLO, be_share: float, max_owed_tokens: int) -> None:
        self._ttft_s = default_slo.ttft_s
        self._be_share = be_share
        self._max_owed_tokens = max_owed_tokens
        self.cap_s = CAP_START * default_slo.ttft_s
        self.limit_s = self.cap_s  # of the last step
        self.be_owed_tokens = 0.0
        self._last_miss_s = float("-inf")

    def set_limit(
        self,
        decoding: Iterable[Request],
        prompt: Request | None,
        prompt_s: float,
        error_ratio: float,
        now_s: float,
    ) -> float:
        """The time limit of the next step, never negative. The step gives each of `decoding` a token and computes at
        least a part of `prompt`, the most urgent one, which takes `prompt_s` by itself."""
        limit_s = self.cap_s
        for request in decoding:
            limit_s = min(limit_s, aimed_deadline_s(request) - now_s)
        if prompt is not None:
            aim_s = prompt.arrival_s + TTFT_AIM * prompt.slo.ttft_s - now_s
            pace_s = min(max(aim_s, FIRST_TOKEN_PACE * prompt.slo.tpot_s), prompt.slo.tpot_s)
            limit_s = min(limit_s, max(prompt_s, min(pace_s, aimed_deadline_s(prompt) - now_s)))
        margin = min(MARGIN_MOST, max(MARGIN_LEAST, error_ratio))
        self.limit_s = max(0.0, limit_s * (1 - margin))
        return self.limit_s

    def count_step(self, num_tokens: int, num_be_tokens: int, be_has_work: bool) -> None:
        """Update the tokens owed to BE after a step: a share of all tokens, as long as BE has work."""
        if be_has_work:
            owed = self.be_owed_tokens + self._be_share * num_tokens - num_be_tokens
            self.be_owed_tokens = min(max(owed, 0.0), self._max_owed_tokens)
        else:
            self.be_owed_tokens = 0.0

    @property
    def is_be_starving(self) -> bool:
        """Whether BE has got nothing for so long that it may take memory from RT."""
        return self.be_owed_tokens >= self._max_owed_tokens

    def count_finished(self, is_in_time: bool, now_s: float) -> None:
        """Adapt the cap after an RT request ended. Only its first token counts: later tokens limit the steps through
        their deadlines."""
        if is_in_time:
            self.cap_s = min(CAP_START * self._ttft_s, self.cap_s + CAP_GROWTH * self._ttft_s)
            return
        if now_s - self._last_miss_s >= MISS_WINDOW_S:
            self._last_miss_s = now_s
            self.cap_s = max(CAP_FLOOR * self._ttft_s, self.cap_s * CAP_SHRINK)
