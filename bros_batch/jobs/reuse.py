"""Answers that need not be computed again: prepare looks here before it adds items to the stream.

Of each item's content keys, the answer to some may be stored, and others may be computed by an item that is in hand:

    all are stored                  the item ends with them
    one is in hand                  the item waits, and is prepared again when that one has ended
    otherwise                       the engine computes the parts that are not stored; record adds the others

Items wait only for items that are queued, and a queued item waits for nothing, so they cannot wait in a circle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec

from bros_batch.db import content_keys, engines
from bros_batch.db.connections import reading, writing
from bros_batch.db.item_results import FinishedItem, ItemOrigin
from bros_batch.db.pending_items import QueuedItem, RunnableJob
from bros_batch.db.states import ItemStatus
from bros_batch.db.table_rows import ContentKey
from bros_batch.documents import content_key
from bros_batch.documents.item_requests import JobRequests
from bros_batch.jobs.finished_item import finished_item
from bros_batch.jobs.leaders import find_leaders, set_leaders
from bros_batch.jobs.memo import Memo, choices_of, reused_tokens
from bros_batch.jobs.streams import StreamEntry, heartbeats
from bros_batch.jobs.worker import Worker
from bros_batch.openai_api.endpoint import ServedModel
from bros_batch.openai_api.engine_requests import EngineRequests
from engine.wire.decoding import DECODE_ERRORS
from engine.wire.item_messages import MAX_MEMO_BYTES, Choice, ItemResult, encode

# They are let go together, in one transaction. More of them compute their answers instead.
MAX_WAITING = 4096


@dataclass(frozen=True, slots=True)
class PreparedItem:
    """A claimed item with its requests. `keys` is empty if its answers cannot be reused."""

    item: QueuedItem
    requests: EngineRequests
    keys: Sequence[bytes]
    payload: bytes


@dataclass(frozen=True, slots=True)
class Settled:
    """What becomes of prepared items: entries for the stream, and items that have ended. The others wait."""

    entries: list[StreamEntry] = field(default_factory=list)
    ended: list[FinishedItem] = field(default_factory=list)


class Reuse:
    """Finds the answers of earlier items for those that are prepared in one run."""

    def __init__(self, worker: Worker, model_name: str, model: ServedModel) -> None:
        self._worker = worker
        self._model_name = model_name
        self._model = model
        self._weights = served_weights(worker, model_name)
        self._may_wait = True  # any item for the answer of another: of what this run has not seen, some may

    def release_waiting(self) -> None:
        """Let go of items that wait for one which is not in hand any more."""
        if not self._may_wait:
            return
        with reading(self._worker.database) as connection:
            self._may_wait = content_keys.count_waiting(connection) > 0
        if self._may_wait:
            with writing(self._worker.database) as connection:
                content_keys.release_waiting(connection)

    def scope_of(self, job: RunnableJob) -> bytes | None:
        """What the keys of a job begin with; None if nothing of it can be reused.

        A background response is asked for by somebody who expects a new answer.
        """
        if not self._weights or not job.input_file_id:
            return None
        return content_key.key_scope(job.model, self._weights, job.owner)

    def memo(self, keys: Sequence[bytes], requests: EngineRequests) -> Memo:
        num_shared = len(requests.shared_ids)
        return Memo(self._weights, keys, [num_shared + len(part.token_ids) for part in requests.parts])

    def settle(
        self, job: RunnableJob, job_requests: JobRequests, prepared: Sequence[PreparedItem]
    ) -> Settled:
        """Decide what becomes of prepared items of a job."""
        settled = Settled()
        looked_up = {} if job.fresh else self._look_up(prepared)
        leaders: dict[bytes, int] = {}
        waiting: list[tuple[int, int, int]] = []
        room: int | None = None
        for each in prepared:
            item, payload = each.item, each.payload
            found = looked_up.get(item.id)
            if found is not None:
                unknown = (key for key in each.keys if key not in found.answers)
                source = next((leaders[key] for key in unknown if key in leaders), found.source_id)
                if source is not None:
                    if room is None:
                        room = self._room_to_wait()
                    if room > len(waiting):
                        waiting.append((item.id, item.epoch, source))
                        continue
                elif found.answers:
                    known = _known_choices(each, found.answers)
                    if None not in known:
                        settled.ended.append(self._ended(job, job_requests, each, known, found.answers))
                        continue
                    payload = self._partial(job, each, known) or payload
            leaders.update((key, item.id) for key in each.keys if found is None or key not in found.answers)
            settled.entries.append(StreamEntry(item.id, item.epoch, job.id, job.priority, payload))
        if waiting:
            self._may_wait = True
            with writing(self._worker.database) as connection:
                content_keys.let_wait(connection, waiting)
        set_leaders(self._worker.redis, self._model_name, leaders)
        return settled

    def _look_up(self, prepared: Sequence[PreparedItem]) -> dict[int, _Found]:
        """What there is for each item that may take the answers of others."""
        asking = [each for each in prepared if each.keys and each.item.source_id != each.item.id]
        keys = list({key for each in asking for key in each.keys})
        if not keys:
            return {}
        leaders = find_leaders(self._worker.redis, self._model_name, keys)
        with reading(self._worker.database) as connection:
            in_hand = content_keys.items_in_hand(connection, set(leaders.values())) if leaders else set()
            # After the items in hand: one that ends in between has its answer stored by then.
            answers = content_keys.find_answers(connection, keys)
        found = {}
        for each in asking:
            own = {key: answers[key] for key in each.keys if key in answers}
            sources = (leaders.get(key) for key in each.keys if key not in own)
            source = next((s for s in sources if s in in_hand and s != each.item.id), None)
            found[each.item.id] = _Found(own, source)
        return found

    def _room_to_wait(self) -> int:
        with reading(self._worker.database) as connection:
            return MAX_WAITING - content_keys.count_waiting(connection)

    def _ended(
        self,
        job: RunnableJob,
        job_requests: JobRequests,
        each: PreparedItem,
        known: Sequence[Sequence[Choice] | None],
        answers: dict[bytes, ContentKey],
    ) -> FinishedItem:
        """How an item ends whose answers are all known."""
        item = each.item
        prompt_tokens = self.memo(each.keys, each.requests).prompt_tokens
        reused = reused_tokens(known, prompt_tokens)
        result = ItemResult(
            item.id,
            item.epoch,
            job.id,
            "",
            [choice for part in known if part is not None for choice in part],
            prompt_tokens=reused.prompt_tokens,
            cached_tokens=reused.prompt_tokens,
        )
        origin = ItemOrigin(job.id, job.endpoint, job.model, job.ingest_form, item.body)
        finished = finished_item(result, origin, job_requests, self._model, reused)
        source_id = answers[each.keys[0]].item_id
        return replace(finished, source_id=source_id) if finished.status == ItemStatus.SUCCEEDED else finished

    def _partial(
        self, job: RunnableJob, each: PreparedItem, known: Sequence[Sequence[Choice] | None]
    ) -> bytes | None:
        """The payload of an item of which the engine computes only what is not known; None if that does not fit."""
        memo = msgspec.structs.replace(self.memo(each.keys, each.requests), known=known).encoded()
        if len(memo) > MAX_MEMO_BYTES:
            return None
        requests = each.requests
        unknown = [part for part, choices in zip(requests.parts, known, strict=True) if choices is None]
        item = each.item
        return encode(
            replace(requests, parts=unknown).as_item(
                item.id, item.epoch, job.id, job.priority, job.deadline_at, memo, job.owner
            )
        )


@dataclass(frozen=True, slots=True)
class _Found:
    """The stored answers to an item's keys, and an item in hand that computes another of them."""

    answers: dict[bytes, ContentKey]
    source_id: int | None


def _known_choices(each: PreparedItem, answers: dict[bytes, ContentKey]) -> list[Sequence[Choice] | None]:
    """The outputs of the parts whose answers are stored, as if the engine had returned them for this item."""
    known: list[Sequence[Choice] | None] = []
    for key, part in zip(each.keys, each.requests.parts, strict=True):
        answer = answers.get(key)
        choices: Sequence[Choice] | None = None
        if answer is not None:
            tail = each.requests.prompt_tail_of(part) if part.sampling.max_tokens else []
            try:
                choices = [msgspec.structs.replace(choice, prompt_tail=tail) for choice in choices_of(answer)]
            except DECODE_ERRORS:  # written by another version: it is computed again
                choices = None
        known.append(choices)
    return known


def served_weights(worker: Worker, model: str) -> str:
    """What the engines of a model compute with. Empty if that is not known, or if they differ.

    While no engine runs, it is that of the last one.
    """
    found = {
        str(beat.get("weights") or "") for beat in heartbeats(worker.redis) if beat.get("model") == model
    }
    if not found:
        with reading(worker.database) as connection:
            seen = [engine for engine in engines.list_engines(connection, 0.0) if engine.model == model]
        if seen:
            latest = max(seen, key=lambda engine: engine.heartbeat_at)
            found = {str(latest.stats.get("weights") or "")}
    return found.pop() if len(found) == 1 else ""
