"""BROS: each step, as much bulk as the chats' deadlines leave time for (arXiv 2504.09590, section 4, taken further).

1. RT tokens: every decoding RT request gets one; they cost little in a step that runs anyway.
2. RT prompts, the first due first; then those that are too late already.
3. BE: decode tokens, then prompts, while the predicted step time is below the limit.
"""

from __future__ import annotations

from collections import deque

from engine.core.allocator import Memory
from engine.core.backlog import Running
from engine.core.batch import Batch
from engine.core.cost_model import CostModel
from engine.core.kv.cache import KVCacheManager
from engine.core.policy.pace import Pace, deadline_s
from engine.core.request import Request, State
from engine.core.terms import Lane

# A chunk shorter than this is left for the next step: it costs a row, and hardly less than a longer one.
MIN_CHUNK_TOKENS = 16
MAX_CHUNK_TOKENS = 1 << 30
# A model that takes prompts to be dearer than they are would never see one, and never learn: after so many steps
# without any, a short chunk is computed whatever it says.
PROBE_STEPS = 64
# Blocks kept free on admission of BE, for those already running to grow into: a share of all, and of each a part.
WATERMARK_SHARE = 1 / 64
GROWTH_BLOCKS_A_ROW = 0.5


class BrosPacker:
    """Fills batches. Owns nothing but the prompts that are too late."""

    def __init__(
        self,
        running: Running,
        memory: Memory,
        kv: KVCacheManager,
        pace: Pace,
        cost: CostModel,
    ) -> None:
        self._running = running
        self._memory = memory
        self._kv = kv
        self._pace = pace
        self._cost = cost
        self._late: deque[Request] = deque()
        self._last_prompt_step = 0
        self._owed_tokens = 0  # to BE, in this step

    @staticmethod
    def sort_key(request: Request) -> tuple[float, float, int]:
        """The order among the requests of a lane: by priority, the job's deadline, and age."""
        deadline = float("inf") if request.deadline_s is None else request.deadline_s
        return -request.priority, deadline, request.order

    def enqueue(self, request: Request) -> None:
        """A request arrived."""
        if request.lane is Lane.RT:
            self._running.prompts.push(request)
        else:
            self._running.waiting.push(request)

    def pack(self, batch: Batch) -> None:
        """Fill an empty batch."""
        now_s = batch.now_s
        running, pace, cost = self._running, self._pace, self._cost
        first = running.prompts.peek()
        first_s = cost.chunk_s(first.num_computed_tokens, first.num_uncomputed_tokens) if first else 0.0
        limit_s = pace.set_limit(running.decoding[Lane.RT], first, first_s, cost.error_ratio, now_s)
        be_has_work = running.has(Lane.BE)
        # What BE is owed comes off the budget that RT may use up; and it is given whatever the deadlines say.
        owed = min(int(pace.be_owed_tokens), batch.tokens_left // 2) if be_has_work else 0
        self._owed_tokens = owed
        batch.tokens_left -= owed
        self._resume_oldest(batch, limit_s)
        self._decode(Lane.RT, batch, float("inf"))
        self._pack_prompts(batch, limit_s, now_s)
        self._pack_late(batch, limit_s)
        batch.tokens_left += owed
        if be_has_work:
            self._pack_be(batch, limit_s, owed)
        if not batch.shape.rows:  # requests hold all memory, and each waits for another
            self._force(Lane.RT, batch)
        if not batch.shape.rows:
            self._force(Lane.BE, batch)
        if batch.shape.tokens > batch.shape.rows:
            self._last_prompt_step = batch.number
        pace.count_step(batch.plan.num_tokens, batch.num_be_tokens, be_has_work)

    # RT -------------------------------------------------------------------------------------------------

    def _resume_oldest(self, batch: Batch, limit_s: float) -> None:
        """The first RT request of all, if it has begun, is behind and got nothing in the last step, gets a little
        before any that could keep memory from it: so there is always one that comes to its end."""
        behind, decoding = self._running.behind[Lane.RT].requests, self._running.decoding[Lane.RT].requests
        if not behind or (decoding and decoding[0].sort_key < behind[0].sort_key):
            return
        oldest = behind[0]
        has_begun = oldest.tail is not None or oldest.num_lost_tokens
        if has_begun and oldest.last_step < batch.number - 1:
            self._memory.catch_up(oldest, batch)
            self._chunk(oldest, batch, limit_s, at_least=MIN_CHUNK_TOKENS, at_most=MIN_CHUNK_TOKENS)

    def _pack_prompts(self, batch: Batch, limit_s: float, now_s: float) -> None:
        """RT prompts that can still be in time, the first due first."""
        prompts = self._running.prompts
        unfinished: list[Request] = []
        while batch.tokens_left > 0:
            request = prompts.peek()
            if request is None:
                break
            prompts.pop()
            work_s = self._cost.chunk_s(request.num_computed_tokens, request.num_uncomputed_tokens)
            if deadline_s(request) - now_s - work_s < 0 and request.first_token_s is None:
                self._late.append(request)
                continue
            unfinished.append(request)
            if request.last_step != batch.number and not self._compute_prompt(request, batch, limit_s):
                break
        for request in unfinished:  # for the next step; it drops those that this step completes
            prompts.push(request)

    def _pack_late(self, batch: Batch, limit_s: float) -> None:
        """Prompts that miss their TTFT whatever happens, the first to arrive first."""
        while self._late:
            request = self._late[0]
            is_behind = request.state in (State.WAITING, State.BEHIND) and request.first_token_s is None
            is_due = is_behind and request.last_step != batch.number
            if is_due and not self._compute_prompt(request, batch, limit_s):
                return
            self._late.popleft()

    def _compute_prompt(self, request: Request, batch: Batch, limit_s: float) -> bool:
        """Adds the uncomputed tokens of an RT request as far as time and memory allow. True if that is all of them."""
        if batch.tokens_left <= 0 or request.last_step == batch.number:
            return False
        if request.state is State.WAITING and not self._memory.admit(request, batch):
            return False
        self._memory.catch_up(request, batch)
        limit_s = max(
            limit_s, request.slo.tpot_s
        )  # RT may take from bulk's time, and makes way for no other RT
        is_first = batch.shape.tokens == batch.shape.rows
        return self._chunk(request, batch, limit_s, at_least=MIN_CHUNK_TOKENS if is_first else 0)

    # BE -------------------------------------------------------------------------------------------------

    def _pack_be(self, batch: Batch, limit_s: float, owed: int) -> None:
        self._decode(Lane.BE, batch, limit_s, at_least=owed)
        if self._pace.is_be_starving and not batch.num_be_tokens:
            self._force(Lane.BE, batch)
        for request in list(self._running.behind[Lane.BE]):
            if request.last_step == batch.number:
                continue
            self._memory.catch_up(request, batch)
            if not self._chunk(request, batch, limit_s, at_least=self._least(batch, owed)):
                return
        while batch.tokens_left > 0:
            at_least = self._least(batch, owed)
            if not at_least and not self._cost.chunk_tokens(batch.shape, limit_s, 0, MIN_CHUNK_TOKENS):
                return
            candidate = self._running.waiting.peek()
            if candidate is None or not self._has_memory_for(candidate):
                return
            if not self._memory.admit(candidate, batch):
                return
            if not self._chunk(candidate, batch, limit_s, at_least=at_least):
                return

    def _least(self, batch: Batch, owed: int) -> int:
        """How many BE tokens the batch takes whatever its limit: those owed, and some if it would else be empty."""
        has_none = batch.shape.tokens == batch.shape.rows
        is_probe = has_none and batch.number - self._last_prompt_step >= PROBE_STEPS
        return max(owed - batch.num_be_tokens, MIN_CHUNK_TOKENS if is_probe or not batch.shape.rows else 0)

    def _force(self, lane: Lane, batch: Batch) -> None:
        """The lane gets a chunk at anybody's cost: of the request forced before, else of its most urgent one."""
        running, sheltered = self._running, self._memory.sheltered
        first = [*running.decoding[lane].requests[:1], *running.behind[lane].requests[:1]]
        request = sheltered or min(first, key=lambda r: r.sort_key, default=None)
        if request is None:
            waiting = running.prompts.peek() if lane is Lane.RT else running.waiting.peek()
            if waiting is None or not self._memory.admit(waiting, batch):
                return
            request = waiting
        if request.state is not State.WAITING and request.last_step != batch.number:
            self._memory.catch_up(request, batch)
            self._chunk(request, batch, 0.0, at_least=MIN_CHUNK_TOKENS, force=True)

    def _has_memory_for(self, request: Request) -> bool:
        """BE is admitted where all its known tokens fit beside those of others that are still to come, above a
        watermark that leaves the ones already running room to grow; alone, it needs no watermark."""
        running = self._running
        num_tokens = request.num_uncomputed_tokens
        num_tokens += sum(r.num_uncomputed_tokens for r in running.behind[Lane.BE])
        num_rows = running.num_rows_of(Lane.BE)
        watermark = 0.0
        if num_rows or running.num_rows_of(Lane.RT):
            watermark = self._kv.num_blocks * WATERMARK_SHARE + num_rows * GROWTH_BLOCKS_A_ROW
        return (self._kv.num_free_blocks - watermark) * self._kv.block_size >= num_tokens

    # Both -----------------------------------------------------------------------------------------------

    def _decode(self, lane: Lane, batch: Batch, limit_s: float, at_least: int = 0) -> None:
        """One token for each decoding request of the lane, the most urgent first, as far as time and memory allow."""
        requests = self._running.decoding[lane].requests[: max(0, batch.tokens_left)]
        starts = [request.num_computed_tokens for request in requests]
        if limit_s != float("inf"):
            num_rows = self._cost.single_rows(batch.shape, limit_s, starts)
            if num_rows < len(requests):
                num_rows = max(num_rows, at_least, 0 if batch.shape.rows else 1)
                requests, starts = requests[:num_rows], starts[:num_rows]
        slots = self._kv.extend_each(requests)
        num_placed = len(slots)
        batch.add_singles(requests[:num_placed], starts[:num_placed], slots)
        for request in requests[num_placed:]:  # memory is full: each takes from others, or is left out
            if request.state is State.DECODING:
                found = self._memory.take(request, 1, batch)
                batch.add_singles([request] * len(found), [request.num_computed_tokens] * len(found), found)

    def _chunk(
        self,
        request: Request,
        batch: Batch,
        limit_s: float,
        *,
        at_least: int = 0,
        at_most: int = MAX_CHUNK_TOKENS,
        force: bool = False,
    ) -> bool:
        """Adds the request's uncomputed tokens as far as the limit allows, `at_least` so many. True if that is all."""
        start, wanted = request.num_computed_tokens, request.num_uncomputed_tokens
        at_most = min(wanted, batch.tokens_left, at_most)
        count = self._cost.chunk_tokens(batch.shape, limit_s, start, at_most)
        if count < min(at_most, MIN_CHUNK_TOKENS):
            count = 0
        count = max(count, min(at_most, at_least))
        if count <= 0:
            return False
        may_preempt = request.lane is Lane.RT or force
        slots = self._memory.take(request, count, batch, may_preempt=may_preempt, force=force)
        if not slots:
            return False
        self._memory.count_computed(request, len(slots))
        batch.add(request, slots)
        return len(slots) == wanted
