"""Queries about webhook calls: each is noted in the transaction that ends its job, and stays until it was made."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import asdict
from urllib.parse import urlsplit

from sqlalchemy import Connection, delete, insert, or_, select, update

from bros_batch.db.table_rows import Job, WebhookCall
from bros_batch.db.tables import webhook_calls

MAX_PAUSE_S = 3 * 3600.0


def add_call(connection: Connection, job: Job, now_s: float) -> None:
    """Note that the webhook of a job, if it has one, is to be told of the end of the job."""
    if job.notify_url is None:
        return
    call = WebhookCall(
        id=f"evt_{secrets.token_hex(12)}",
        job_id=job.id,
        owner=job.owner,
        url=job.notify_url,
        host=(urlsplit(job.notify_url).hostname or "").lower(),
        key_id=job.notify_key_id,
        event=job.status,
        created_at=now_s,
        due_at=now_s,
        num_failed=0,
    )
    connection.execute(insert(webhook_calls), asdict(call))


def due_calls(
    connection: Connection,
    now_s: float,
    limit: int,
    hosts: Collection[str] = (),
    owners: Collection[str] = (),
) -> list[WebhookCall]:
    """Calls that are due, the oldest first, except those to these hosts and of these owners.

    One that is due later than any pause lasts was noted before the clock was set back, and is due as well.
    """
    is_due = or_(webhook_calls.c.due_at <= now_s, webhook_calls.c.due_at > now_s + MAX_PAUSE_S)
    query = select(webhook_calls).where(is_due).order_by(webhook_calls.c.due_at).limit(limit)
    if hosts:
        query = query.where(webhook_calls.c.host.not_in(hosts))
    if owners:
        query = query.where(webhook_calls.c.owner.not_in(owners))
    return [WebhookCall(*row) for row in connection.execute(query)]


def claim_call(connection: Connection, call: WebhookCall, until_s: float) -> bool:
    """Keep other servers from making a call until a time. False if one of them was first."""
    mine = (webhook_calls.c.id == call.id, webhook_calls.c.due_at == call.due_at)
    return bool(connection.execute(update(webhook_calls).where(*mine).values(due_at=until_s)).rowcount)


def repeat_call(connection: Connection, call_id: str, due_at: float) -> None:
    """Note that a call has failed and is to be made again."""
    change = update(webhook_calls).where(webhook_calls.c.id == call_id)
    connection.execute(change.values(due_at=due_at, num_failed=webhook_calls.c.num_failed + 1))


def remove_call(connection: Connection, call_id: str) -> None:
    """Forget a call that was made, or that is given up."""
    connection.execute(delete(webhook_calls).where(webhook_calls.c.id == call_id))
