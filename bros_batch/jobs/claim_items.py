"""Which pending items are prepared next: those of the most urgent jobs, shared among owners by their weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection

from bros_batch.db import pending_items
from bros_batch.db.api_keys import weights_of
from bros_batch.db.connections import reading, writing
from bros_batch.db.pending_items import QueuedItem, RunnableJob
from bros_batch.jobs.fair_shares import FairShares, Share
from bros_batch.jobs.withdraw import take_back_waiting
from bros_batch.jobs.worker import Worker

CLAIM_ITEMS = 256
CLAIM_BYTES = 16 * 1024**2

Claimed = list[tuple[RunnableJob, list[QueuedItem]]]


def make_room(worker: Worker, model: str, shares: FairShares) -> int:
    """Take back items that keep a more urgent job out of a full stream. Returns how many those were."""
    with reading(worker.database) as connection:
        runnable = pending_items.runnable_jobs(connection, model)
        outranked = pending_items.outranked_jobs(connection, model, runnable, shares.owners)
    if outranked:
        shares.start_anew()
    return take_back_waiting(worker, model, outranked)


def claim_most_urgent(
    worker: Worker, model: str, limit: int, shares: FairShares
) -> tuple[Claimed, list[str]]:
    """Claim items of the most urgent jobs. Returns them by job, and the jobs whose waiting items would be before them
    in the stream although they are less urgent: a job may have become runnable just now."""
    # Durable: if Redis held an item of which the database knows nothing after a power cut, another line could get its
    # id, and with it its result.
    with writing(worker.database, durable=True) as connection:
        runnable = pending_items.runnable_jobs(connection, model)
        outranked = pending_items.outranked_jobs(connection, model, runnable, shares.owners)
        if outranked:
            shares.start_anew()
        if len({job.owner for job in runnable.jobs}) < 2:
            shares.start_anew()  # another owner who comes now is a new one
            claimed, suspect = _claim_jobs(connection, runnable.jobs, limit, CLAIM_BYTES)
        else:
            claimed, suspect = _claim_shares(connection, runnable.jobs, limit, shares)
    # An item that was lost may be what ended the worker that had it, with others that it had claimed. It comes last and
    # alone, when the stream has all others, so that it can take nothing with it.
    return [*claimed, *suspect[:1]], outranked


def _claim_shares(
    connection: Connection, runnable: Sequence[RunnableJob], limit: int, shares: FairShares
) -> tuple[Claimed, Claimed]:
    """Claim items of several owners, each as many as its weight allows, the fewest first. What runs as a chat is
    before all others. Engines get no priorities, since those order the jobs of one owner only."""
    claimed, suspects = _claim_jobs(
        connection, [job for job in runnable if job.runs_as_chat], limit, CLAIM_BYTES
    )
    limit -= sum(len(queued) for _, queued in claimed)
    by_owner: dict[str, list[RunnableJob]] = {}
    for job in runnable:
        if not job.runs_as_chat:
            by_owner.setdefault(job.owner, []).append(replace(job, priority=0))
    if limit <= 0 or not by_owner:
        return claimed, suspects
    weights = weights_of(connection, by_owner.keys())
    wanted = {owner: Share(weights[owner], own[0].item_tokens) for owner, own in by_owner.items()}
    groups: list[Claimed] = []
    tokens: dict[str, float] = {}
    left_over = 0
    for owner, count in shares.divide(wanted, limit).items():
        count += left_over
        size = max(CLAIM_BYTES * count // limit, 1)
        own, own_suspects = (
            _claim_jobs(connection, by_owner[owner], count, size, not suspects) if count else ([], [])
        )
        num_items = sum(len(queued) for _, queued in own)
        left_over = count - num_items
        suspects = suspects or own_suspects
        groups.append(own)
        tokens[owner] = sum(len(queued) * job.item_tokens for job, queued in own)
    shares.charge({owner: queued for owner, queued in tokens.items() if queued})
    groups.sort(key=lambda group: sum(len(queued) for _, queued in group))
    return [*claimed, *(each for group in groups for each in group)], suspects


def _claim_jobs(
    connection: Connection,
    runnable: Sequence[RunnableJob],
    limit: int,
    max_bytes: int,
    takes_lost: bool = True,
) -> tuple[Claimed, Claimed]:
    """Claim items of jobs, those of the first ones first. The second list has at most one item: one that was lost
    before, of a job of which nothing else is left."""
    claimed: Claimed = []
    suspect: Claimed = []
    for job in runnable:
        # A line may have megabytes. By the average line of the file, one claim fits into `max_bytes`.
        average_bytes = max(job.ingest_offset // max(job.ingest_line, 1), 1)
        fitting = max(min(limit, max_bytes // average_bytes), 1)
        queued = pending_items.claim_items(connection, job.id, fitting, time.time())
        if queued:
            claimed.append((job, queued))
            limit -= len(queued)
        is_exhausted = len(queued) < fitting  # but for items that were lost before
        if is_exhausted and takes_lost and not suspect:
            lost = pending_items.claim_items(connection, job.id, 1, time.time(), lost_before=True)
            suspect = [(job, lost)] if lost else []
        if limit <= 0 or fitting < limit:
            break
    return claimed, suspect
