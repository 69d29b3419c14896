"""BROS: each step computes as much bulk as the deadlines of the chats leave time for (arXiv 2504.09590, section 4, and
beyond it).

1. RT tokens: every decoding RT request gets one; they cost little in a step that runs anyway.
2. RT prompts, the earliest deadline first; then those that are too late already.
3. BE: decode tokens, then prompts, while the predicted step time is below the limit.
"""

from __future__ import annotations

from collections import deque

from engine.core.allocator import Allocator
from engine.core.backlog import Backlog
from engine.core.batch import MIN_CHUNK_TOKENS, Batch
from engine.core.config import SchedulerConfig
from engine.core.cost_model import CostModel
from engine.core.kv.cache import KVCacheManager
from engine.core.policy.dial import Dial
from engine.core.policy.pace import Pace, aimed_deadline_s
from engine.core.policy.victims import BrosVictims
from engine.core.request import Request, State
from engine.core.terms import Lane

# If the cost model overestimates the time of prompts, no step would ever compute one, and the model would never learn:
# after so many steps without prompts, a short chunk is computed in spite of the prediction.
PROBE_STEPS = 64
# Blocks kept free when BE is admitted, so that running requests can grow: a share of all blocks, and half a block for
# each running BE request.
WATERMARK_SHARE = 1 / 64
GROWTH_BLOCKS_PER_ROW = 0.5


class BrosPolicy:
    """RT has reserved rows and takes memory from BE. BE has at least its share of rows and tokens."""

    def __init__(
        self, config: SchedulerConfig, kv: KVCacheManager, cost: CostModel, pace: Pace, dial: Dial
    ) -> None:
        min_be_rows = max(1, int(config.be_share * config.max_num_seqs))
        self.backlog = Backlog(config.max_num_seqs, config.reserved_rt_rows, min_be_rows)
        self._victims = BrosVictims(kv, self.backlog, config.max_preemptions)
        self.allocator = Allocator(kv, self.backlog, cost, self._victims, config.trims)
        self._kv = kv
        self._pace = pace
        self._dial = dial
        self._cost = cost
        self._late: deque[Request] = deque()
        self._last_prompt_step = 0

    def sort_key(self, request: Request) -> tuple[float, float, int]:
        """By priority, then the job's deadline, then age."""
        deadline = float("inf") if request.deadline_s is None else request.deadline_s
        return -request.priority, deadline, request.order

    def enqueue(self, request: Request) -> None:
        """Put a request into the backlog: RT by deadline, BE by sort key."""
        if request.lane is Lane.RT:
            self.backlog.add_by_deadline(request)
        else:
            self.backlog.add(request)

    def pack(self, batch: Batch) -> None:
        """Fill an empty batch up to the time limit of the step."""
        now_s = batch.now_s
        backlog, pace, cost = self.backlog, self._pace, self._cost
        first = backlog.prompts.peek()
        first_s = cost.chunk_s(first.num_computed_tokens, first.num_uncomputed_tokens) if first else 0.0
        limit_s = pace.set_limit(
            backlog.decoding[Lane.RT].requests, first, first_s, cost.fixed_s, cost.error_ratio, now_s
        )
        be_has_work = backlog.has(Lane.BE)
        # The tokens owed to BE are set aside from the budget before RT uses it up, even if RT then misses deadlines.
        owed = min(int(pace.be_owed_tokens), batch.tokens_left // 2) if be_has_work else 0
        if owed:
            batch.set_aside(owed)
        self._resume_oldest(batch, limit_s)
        self._decode(Lane.RT, batch, float("inf"))
        self._pack_prompts(batch, limit_s, now_s)
        self._pack_late(batch, limit_s)
        if owed:
            batch.set_aside(0)
        if be_has_work:
            be_limit_s = self._be_limit_s(batch, limit_s) if self._dial.is_used else limit_s
            if be_limit_s is None:
                return
            self._pack_be(batch, be_limit_s, owed)
        if not batch.shape.rows:  # requests hold all memory, and each waits for another
            self._force(Lane.RT, batch)
        if not batch.shape.rows:
            self._force(Lane.BE, batch)
        if batch.shape.tokens > batch.shape.rows:
            self._last_prompt_step = batch.number
        pace.count_step(batch.plan.num_tokens, batch.num_be_tokens, be_has_work)

    # RT -------------------------------------------------------------------------------------------------

    def _resume_oldest(self, batch: Batch, limit_s: float) -> None:
        """Compute a little of the most urgent RT request if it has begun, is behind and got nothing in the last step.
        It goes before all that could keep memory from it, so there is always one request that gets to its end."""
        behind, decoding = self.backlog.behind[Lane.RT].requests, self.backlog.decoding[Lane.RT].requests
        if not behind or (decoding and decoding[0].sort_key < behind[0].sort_key):
            return
        oldest = behind[0]
        has_begun = oldest.tail is not None or oldest.num_lost_tokens
        if has_begun and oldest.last_step < batch.number - 1:
            self.allocator.compute(
                oldest, batch, limit_s, at_least=MIN_CHUNK_TOKENS, at_most=MIN_CHUNK_TOKENS
            )

    def _pack_prompts(self, batch: Batch, limit_s: float, now_s: float) -> None:
        """RT prompts that can still meet their TTFT, the earliest deadline first."""
        prompts = self.backlog.prompts
        unfinished: list[Request] = []
        while batch.tokens_left > 0:
            request = prompts.peek()
            if request is None:
                break
            prompts.pop()
            work_s = self._cost.chunk_s(request.num_computed_tokens, request.num_uncomputed_tokens)
            spare_s = aimed_deadline_s(request) - now_s - work_s
            if spare_s < 0 and request.first_token_s is None:
                self._late.append(request)
                continue
            unfinished.append(request)
            if request.last_step == batch.number:
                continue
            may_wait = spare_s > max(limit_s, request.slo.tpot_s)  # for this step, which may take as long
            if not self._compute_prompt(request, batch, limit_s, may_wait=may_wait):
                break
        for request in unfinished:  # for the next step; it drops those that this step completes
            prompts.push(request)

    def _pack_late(self, batch: Batch, limit_s: float) -> None:
        """RT prompts that miss their TTFT in any case, in the order in which that was found out. One that begins like
        another waits for it: to compute the same tokens twice in a step would make all of them later."""
        while self._late:
            request = self._late[0]
            is_behind = request.state in (State.WAITING, State.BEHIND) and request.first_token_s is None
            is_next = is_behind and request.last_step != batch.number
            if is_next and not self._compute_prompt(request, batch, limit_s, may_wait=True):
                return
            self._late.popleft()

    def _compute_prompt(
        self, request: Request, batch: Batch, limit_s: float, *, may_wait: bool = False
    ) -> bool:
        """Compute the next tokens of an RT request as far as time and memory allow. True if that is all of them, or if
        it waits."""
        if batch.tokens_left <= 0 or request.last_step == batch.number:
            return False
        limit_s = max(limit_s, request.slo.tpot_s)  # RT may use BE's time; no other RT is kept waiting
        is_first = batch.shape.tokens == batch.shape.rows
        at_least = MIN_CHUNK_TOKENS if is_first else 0
        return self.allocator.compute(request, batch, limit_s, at_least=at_least, may_wait=may_wait)

    # BE -------------------------------------------------------------------------------------------------

    def _be_limit_s(self, batch: Batch, limit_s: float) -> float | None:
        """The limit of the step for bulk where chats have a slowdown; None if bulk has to wait."""
        backlog, cost = self.backlog, self._cost
        chat_s = cost.predict(batch.chat_shape) if batch.chat_shape.rows else 0.0
        first = backlog.prompts.peek()
        chats = [*backlog.decoding[Lane.RT].requests, *backlog.behind[Lane.RT].requests]
        if first is not None:
            chats.append(first)
        may_lose_s = self._dial.may_lose_s(chats, chat_s)
        if may_lose_s == float("inf"):
            return limit_s
        batch.min_chunk_tokens = 1  # what bulk may take is often less than a chunk of the usual size
        if chats and not chat_s:
            # Either they wait for memory, or the cost model has not learned from a step like this one without bulk.
            return 0.0 if batch.shape.rows else limit_s
        return self._pace.limit_bulk(limit_s, may_lose_s, chat_s, cost.fixed_s, cost.error_ratio, batch.now_s)

    def _pack_be(self, batch: Batch, limit_s: float, owed: int) -> None:
        self._make_way(batch)
        self._decode(Lane.BE, batch, limit_s, at_least=owed)
        if self._pace.is_be_starving and not batch.num_be_tokens:
            self._force(Lane.BE, batch)
        for request in list(self.backlog.behind[Lane.BE]):
            if request.last_step == batch.number:
                continue
            at_least = self._min_be_tokens(batch, owed)
            if not self.allocator.compute(request, batch, limit_s, at_least=at_least, may_wait=True):
                return
        while batch.tokens_left > 0:
            at_least = self._min_be_tokens(batch, owed)
            if not at_least and not self._cost.chunk_tokens(batch.shape, limit_s, 0, MIN_CHUNK_TOKENS):
                return
            candidate = self.backlog.waiting.peek()
            if candidate is None or not self._has_memory_for(candidate):
                return
            # A request that comes back after it lost its row restores its copies in the next step.
            if not self.allocator.compute(
                candidate, batch, limit_s, at_least=at_least, restore=False, may_wait=True
            ):
                return

    def _make_way(self, batch: Batch) -> None:
        """If there is no row or memory for the first request that waits, take the row of one with a lower priority.
        That one then gives up memory too, as far as needed. One per step is enough: steps are short. Nobody loses a row
        if all of them together would not make enough room."""
        candidate = self.backlog.waiting.peek()
        if candidate is None or candidate.lane is not Lane.BE:
            return
        victim = self.backlog.last_of_be()
        if victim is None or victim.priority >= candidate.priority or victim.is_sheltered:
            return
        if self.backlog.has_row_for_be() and self._has_memory_for(candidate):
            return
        if self._has_memory_for(candidate, displacing=True):
            self.backlog.displace(victim)

    def _min_be_tokens(self, batch: Batch, owed: int) -> int:
        """How many BE tokens the batch takes regardless of its limit: those owed, and some if it would be empty."""
        has_none = batch.shape.tokens == batch.shape.rows
        is_probe = has_none and batch.number - self._last_prompt_step >= PROBE_STEPS
        return max(owed - batch.num_be_tokens, MIN_CHUNK_TOKENS if is_probe or not batch.shape.rows else 0)

    def _force(self, lane: Lane, batch: Batch) -> None:
        """Compute a chunk for the lane at any cost: of the request forced before, else of the lane's most urgent."""
        backlog = self.backlog
        first = [*backlog.decoding[lane].requests[:1], *backlog.behind[lane].requests[:1]]
        request = self._victims.sheltered or min(first, key=lambda r: r.sort_key, default=None)
        if request is None:
            request = backlog.prompts.peek() if lane is Lane.RT else backlog.waiting.peek()
        elif request.state is State.WAITING:
            return
        if request is not None and request.last_step != batch.number:
            self.allocator.compute(request, batch, 0.0, at_least=MIN_CHUNK_TOKENS, force=True)

    def _has_memory_for(self, request: Request, *, displacing: bool = False) -> bool:
        """BE is admitted if all its known tokens fit beside those that other BE requests have still to compute, above a
        watermark that lets running requests grow. Without any running requests there is no watermark. It may take what
        requests of lower priority hold that lost their row. With `displacing`, as if all of them had lost it."""
        backlog = self.backlog
        behind = backlog.behind[Lane.BE].requests
        num_rows = backlog.num_rows_of(Lane.BE)
        outranked = backlog.parked_below(request.priority) if backlog.parked else []
        if displacing:
            rows = [*behind, *backlog.decoding[Lane.BE].requests]
            losing = [r for r in rows if r.priority < request.priority and not r.is_sheltered]
            outranked += losing
            num_rows -= len(losing)
            behind = [r for r in behind if r.priority >= request.priority or r.is_sheltered]
        num_tokens = len(request.token_ids) - request.num_computed_tokens
        for each in behind:  # of which there are many when a step admits many
            num_tokens += len(each.token_ids) - each.num_computed_tokens
        watermark = 0.0
        if num_rows or backlog.num_rows_of(Lane.RT):
            watermark = self._kv.num_blocks * WATERMARK_SHARE + num_rows * GROWTH_BLOCKS_PER_ROW
        free_tokens = (self._kv.num_free_blocks - watermark) * self._kv.block_size
        if outranked:
            free_tokens += sum(r.num_computed_tokens for r in outranked)
        return free_tokens >= num_tokens

    # Both -----------------------------------------------------------------------------------------------

    def _decode(self, lane: Lane, batch: Batch, limit_s: float, at_least: int = 0) -> None:
        """One token for each decoding request of the lane, the most urgent first, as far as time and memory allow."""
        requests = self.backlog.decoding[lane].requests[: max(0, batch.tokens_left)]
        starts = [request.num_computed_tokens for request in requests]
        if limit_s != float("inf"):
            num_rows = self._cost.single_rows(batch.shape, limit_s, starts)
            if num_rows < len(requests):
                num_rows = max(num_rows, at_least, 0 if batch.shape.rows else 1)
                requests, starts = requests[:num_rows], starts[:num_rows]
        self.allocator.decode(requests, starts, batch)
