"""The time limit of the next step, which the deadlines of the chats set, and the tokens owed to bulk in any case."""

from __future__ import annotations

from collections.abc import Sequence

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
# Every step has a fixed cost (reading the weights, launching), which is wasted if the step computes little. It is at
# most this share of a step, unless a chat needs shorter steps; the second is for when no chat has come for QUIET_S.
FIXED_SHARE, QUIET_FIXED_SHARE = 0.25, 0.125
# Steps of this share of its TPOT serve a chat in time.
STEADY_PACE = 0.8
# If the fixed cost alone is more than this share of its TPOT, steps of no size serve a chat in time, and it does not
# make them small. While there is such a chat, one step in RECHECK_STEPS has no bulk, to measure the fixed cost again.
# The same holds beside chats with a slowdown: if all steps have bulk, none shows what they would take without it.
TOO_FAST, RECHECK_STEPS = 0.9, 32
# When there has been no chat for QUIET_S, one is unlikely to arrive during the next step, which may then take this
# share of the default TTFT.
QUIET_S, QUIET_CAP = 10.0, 0.8
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


def is_too_fast(tpot_s: float, fixed_s: float) -> bool:
    """Whether steps of no size serve a chat with this TPOT in time."""
    return fixed_s > TOO_FAST * tpot_s


def shortest_limit_s(fixed_s: float, tpot_s: float) -> float:
    """The limit of steps below which a chat with this TPOT does not push it, however late the chat is."""
    limit_s = fixed_s / FIXED_SHARE
    return limit_s if is_too_fast(tpot_s, fixed_s) else min(limit_s, STEADY_PACE * tpot_s)


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
        self.resume_s: float | None = (
            None  # when bulk may go on that waits for a silence; None if it does not wait
        )
        self.be_owed_tokens = 0.0
        self._last_miss_s = self._last_rt_s = float("-inf")
        self._num_beside = 0  # steps in which bulk could run beside chats with a slowdown
        self._num_too_fast = 0  # steps with a chat whose TPOT is too short for this machine

    def set_limit(
        self,
        decoding: Sequence[Request],
        prompt: Request | None,
        prompt_s: float,
        fixed_s: float,
        error_ratio: float,
        now_s: float,
    ) -> float:
        """The time limit of the next step, never negative. The step gives each of `decoding` a token and computes at
        least a part of `prompt`, the most urgent one, which takes `prompt_s` by itself. Every step takes `fixed_s`."""
        self.resume_s = None
        share = 1 - min(MARGIN_MOST, max(MARGIN_LEAST, error_ratio))
        if decoding or prompt is not None:
            self._last_rt_s = now_s
        limit_s = self._widest_limit_s(share, fixed_s, now_s)
        for request in decoding:
            left_s = share * (aimed_deadline_s(request) - now_s)
            if left_s < limit_s:
                limit_s = min(limit_s, max(left_s, shortest_limit_s(fixed_s, request.slo.tpot_s)))
        if prompt is not None:
            tpot_s = prompt.slo.tpot_s
            aim_s = prompt.arrival_s + TTFT_AIM * prompt.slo.ttft_s - now_s
            pace_s = min(max(aim_s, FIRST_TOKEN_PACE * tpot_s), tpot_s)
            left_s = share * max(prompt_s, min(pace_s, aimed_deadline_s(prompt) - now_s))
            limit_s = min(limit_s, max(left_s, shortest_limit_s(fixed_s, tpot_s)))
        if decoding and is_too_fast(decoding[0].slo.tpot_s, fixed_s):
            self._num_too_fast += 1
            if self._num_too_fast % RECHECK_STEPS == 0:
                limit_s = 0.0
        self.limit_s = limit_s
        return limit_s

    def _widest_limit_s(self, share: float, fixed_s: float, now_s: float) -> float:
        """The limit of a step that no deadline shortens, which is higher when no RT request has been there for a
        while."""
        if now_s >= self.quiet_from_s:
            return max(share * max(self.cap_s, QUIET_CAP * self._ttft_s), fixed_s / QUIET_FIXED_SHARE)
        return max(share * self.cap_s, fixed_s / FIXED_SHARE)

    @property
    def quiet_from_s(self) -> float:
        """From when on there has been no chat for so long that one is unlikely to arrive during a step."""
        return self._last_rt_s + QUIET_S

    def limit_bulk(
        self,
        limit_s: float,
        may_lose_s: float,
        chat_s: float,
        fixed_s: float,
        error_ratio: float,
        now_s: float,
    ) -> float | None:
        """The limit of a step with bulk, if the chats in it alone take `chat_s` and bulk may cost them `may_lose_s`.
        None if bulk has to wait: there is no chat to run beside, one that arrived could not bear the shortest step, and
        there was one a moment ago. After a silence, a step takes as long as its fixed cost makes it worth."""
        share = 1 - min(MARGIN_MOST, max(MARGIN_LEAST, error_ratio))
        bulk_s = chat_s + share * max(0.0, may_lose_s)
        if not chat_s:
            if now_s >= self.quiet_from_s:
                bulk_s = max(bulk_s, fixed_s / QUIET_FIXED_SHARE)
            elif bulk_s < fixed_s:
                self.resume_s = self.quiet_from_s
                return None
        else:
            self._num_beside += 1
            if self._num_beside % RECHECK_STEPS == 0:
                return 0.0
        return min(limit_s, bulk_s)

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
