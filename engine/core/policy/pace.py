"""How long the next step may take: what the chats' deadlines leave, and what bulk is owed in any case."""

from __future__ import annotations

from collections.abc import Iterable

from engine.core.request import Request
from engine.core.terms import SLO

# Deadlines are aimed at a little early: the answer has a way to go after the step.
TTFT_SAFETY = 0.9
# By a share of the time since the first token, and at most so much of the time per output token: the way of an answer's
# hundredth token is no longer than that of its third.
TPOT_SAFETY, TPOT_MOST_EARLY = 0.9, 0.6
# Of the default TTFT: what an RT request may find itself waiting for when it arrives. At a half of it, one that came
# with others was late: its own prompt and theirs need time as well.
CAP_START, CAP_FLOOR, CAP_GROWTH = 1 / 3, 0.02, 0.002
# A step that computes a first token is to end before this share of the TTFT has passed, as it is the token that people
# wait for most; where it is too late for that, it still takes so much of the time per output token.
TTFT_AIM = 0.5
FIRST_TOKEN_PACE = 0.5
CAP_SHRINK = 0.7
# A miss may come from the same long step as the one before it: they count once.
MISS_WINDOW_S = 2.0
# Running error of the cost model beyond which steps are shortened no more, and below which no less.
MARGIN_LEAST, MARGIN_MOST = 0.02, 0.2


def aimed_deadline_s(request: Request) -> float:
    """When to have the request's next token ready, to be on time with a little to spare. While its first token is under
    way, nothing says yet when the second is due."""
    if request.first_token_s is None:
        if request.num_output_tokens:
            return float("inf")
        return request.arrival_s + TTFT_SAFETY * request.slo.ttft_s
    since_first_s = request.next_deadline_s - request.first_token_s
    return request.next_deadline_s - min(
        (1 - TPOT_SAFETY) * since_first_s, TPOT_MOST_EARLY * request.slo.tpot_s
    )


class Pace:
    """Limits of steps. Times in seconds.

    `cap_s` bounds a step that no deadline bounds, because a request may arrive while it runs. It shrinks by a factor
    when first tokens are late and grows by small steps while they are in time, as TCP's window does (RFC 5681).
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
        """The time limit of the next step, which gives each of `decoding` a token and computes (some of) `prompt`, the
        most urgent one, whose own work takes `prompt_s`. Never negative."""
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
        """BE is owed a share of all tokens as long as it has work."""
        if be_has_work:
            owed = self.be_owed_tokens + self._be_share * num_tokens - num_be_tokens
            self.be_owed_tokens = min(max(owed, 0.0), self._max_owed_tokens)
        else:
            self.be_owed_tokens = 0.0

    @property
    def is_be_starving(self) -> bool:
        """BE has got nothing for so long that it may take from RT."""
        return self.be_owed_tokens >= self._max_owed_tokens

    def count_finished(self, is_in_time: bool, now_s: float) -> None:
        """An RT request ended, whose first token was in time or not: its further ones set limits of their own."""
        if is_in_time:
            self.cap_s = min(CAP_START * self._ttft_s, self.cap_s + CAP_GROWTH * self._ttft_s)
            return
        if now_s - self._last_miss_s >= MISS_WINDOW_S:
            self._last_miss_s = now_s
            self.cap_s = max(CAP_FLOOR * self._ttft_s, self.cap_s * CAP_SHRINK)
