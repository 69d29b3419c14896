"""Answers that have just been computed: record stores them under their content keys, for later items."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from bros_batch.db import content_keys
from bros_batch.db.item_results import FinishedItem
from bros_batch.db.states import ItemStatus
from bros_batch.db.table_rows import ContentKey
from bros_batch.jobs.finished_item import NOTHING_REUSED, Reused
from bros_batch.jobs.leaders import remove_leaders
from bros_batch.jobs.memo import memo_of
from bros_batch.jobs.worker import Worker
from engine.wire.item_messages import ItemResult


class ComputedAnswers:
    """The answers in one group of results. Those without a memo cost nothing here."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._answers: dict[tuple[int, int], Sequence[ContentKey]] = {}  # by id and epoch of the item
        self._keys: dict[str, set[bytes]] = {}  # by model
        self._waited_for: set[str] = set()  # models

    def completed(self, result: ItemResult, model: str) -> tuple[ItemResult, Reused]:
        """Take in a result. Returns it with the answers of its item that were known before, and what those saved."""
        memo = memo_of(result)
        if memo is None:
            return result, NOTHING_REUSED
        self._keys.setdefault(model, set()).update(memo.keys)
        try:
            whole, reused = memo.completed(result)
            if result.error_code is None:
                self._answers[result.item_id, result.epoch] = memo.answers(result)
        except ValueError:  # the memo is not that of this result
            return result, NOTHING_REUSED
        return whole, reused

    def store(self, connection: Connection, finished: Sequence[FinishedItem]) -> None:
        """Store the answers of the items that succeeded, in the transaction that ends them."""
        if not self._keys:
            return
        content_keys.store_answers(
            connection,
            (
                answer
                for item in finished
                if item.status == ItemStatus.SUCCEEDED
                for answer in self._answers.get((item.id, item.epoch), ())
            ),
        )
        if content_keys.is_waited_for(connection, [item.id for item in finished]):
            self._waited_for.update(self._keys)

    def settle(self) -> set[str]:
        """Forget who computes these answers. Returns the models with items that waited for them."""
        for model, keys in self._keys.items():
            remove_leaders(self._worker.redis, model, keys)
        return self._waited_for
