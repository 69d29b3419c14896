"""The task that makes webhook calls.

A call that is not answered with a status of success is repeated with growing pauses, for three days. Calls are in the
database until they were made, so they survive the death of any process; one that dies in the middle of a call makes it
again. So an event may come twice, with the same id.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

from sqlalchemy import Connection

from bros_batch.addresses import without_password
from bros_batch.db import jobs, webhook_calls
from bros_batch.db.api_keys import notify_secret_of
from bros_batch.db.job_events import add_event
from bros_batch.db.table_rows import Job, WebhookCall
from bros_batch.settings import Settings
from bros_batch.web.errors import ApiError
from bros_batch.web.webhooks.call import TIMEOUT_S, Answer, call
from bros_batch.web.webhooks.event import event_body, headers_of
from bros_batch.web.webhooks.hosts import RESOLVE_TIMEOUT_S, HostError, WebhookHosts

logger = logging.getLogger(__name__)

T = TypeVar("T")

INTERVAL_S = 1.0
FIRST_PAUSE_S = 5.0
GIVE_UP_AFTER_S = 72 * 3600.0
# Until then, no other server makes a call that one is making. If that one has died, the next one makes it.
CLAIM_S = 60.0
assert TIMEOUT_S + RESOLVE_TIMEOUT_S < CLAIM_S / 2
# Calls that run at once: so neither a host that never answers nor an owner with many of those delays the others.
AT_ONCE = 64
AT_ONCE_PER_HOST = 8
AT_ONCE_PER_OWNER = 32


class Database(Protocol):
    """What runs a query in a transaction. Raises ApiError while the database is not available."""

    async def read(self, query: Callable[[Connection], T]) -> T: ...
    async def write(self, query: Callable[[Connection], T]) -> T: ...


@dataclass(frozen=True, slots=True)
class _Planned:
    """A call with what it takes to make it."""

    row: WebhookCall
    url: str
    body: bytes
    secret: str | None


class Delivery:
    """Makes the calls that are due."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._hosts = WebhookHosts(settings.webhook_hosts)
        self._anywhere = WebhookHosts(("0.0.0.0/0", "::/0"))
        self._running: dict[asyncio.Task[None], WebhookCall] = {}
        self._has_room = asyncio.Event()

    async def run(self) -> None:
        """Make calls until cancelled; calls that are under way then are made again later."""
        try:
            while True:
                self._has_room.clear()
                try:
                    more = await self.start_due()
                except ApiError:  # the database is not available
                    more = False
                except Exception:
                    logger.exception("webhooks are called later")
                    more = False
                if not more:
                    await asyncio.sleep(INTERVAL_S)
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(INTERVAL_S):
                        await self._has_room.wait()
        finally:
            for task in self._running:
                task.cancel()

    async def start_due(self, now_s: float | None = None) -> bool:
        """Start the calls that are due and for which there is room. Returns whether some are left."""
        clock = time.time() if now_s is None else now_s
        if not await self._database.read(lambda connection: webhook_calls.due_calls(connection, clock, 1)):
            return False
        planned, more = await self._database.write(lambda connection: self._claim(connection, clock))
        for each in planned:
            task = asyncio.create_task(self._deliver(each, now_s))
            self._running[task] = each.row
            task.add_done_callback(self._ended)
        return more

    async def finish(self) -> None:
        """Wait for the calls that are under way."""
        while self._running:
            await asyncio.wait(self._running)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task)
        self._has_room.set()

    def _claim(self, connection: Connection, now_s: float) -> tuple[list[_Planned], bool]:
        """Claim calls as far as there is room for them, passing over hosts and owners that have as many as they may."""
        hosts = Counter(row.host for row in self._running.values())
        owners = Counter(row.owner for row in self._running.values())
        planned: list[_Planned] = []
        while (room := AT_ONCE - hosts.total()) > 0:
            full = {host for host, count in hosts.items() if count >= AT_ONCE_PER_HOST}
            full_owners = {owner for owner, count in owners.items() if count >= AT_ONCE_PER_OWNER}
            found = webhook_calls.due_calls(connection, now_s, room, full, full_owners)
            if not found:
                return planned, bool(full or full_owners)
            for row in found:
                if hosts[row.host] >= AT_ONCE_PER_HOST or owners[row.owner] >= AT_ONCE_PER_OWNER:
                    continue
                each = self._planned(connection, row)
                if each is not None and webhook_calls.claim_call(connection, row, now_s + CLAIM_S):
                    planned.append(each)
                    hosts[row.host] += 1
                    owners[row.owner] += 1
        return planned, True

    def _planned(self, connection: Connection, row: WebhookCall) -> _Planned | None:
        """What a call takes. One that has become pointless is forgotten."""
        job = jobs.get_job(connection, row.job_id)
        url = row.url or self._settings.webhook_url
        body = event_body(connection, row, job) if job is not None and url else None
        if body is None:
            webhook_calls.remove_call(connection, row.id)
            return None
        secret = notify_secret_of(connection, row.key_id) if row.url else None
        return _Planned(row, url, body, secret or self._settings.webhook_secret)

    async def _deliver(self, planned: _Planned, now_s: float | None) -> None:
        """Make a call, and note what came of it."""
        answer = await self._call(planned, time.time() if now_s is None else now_s)
        called_s = time.time() if now_s is None else now_s
        try:
            await self._database.write(
                lambda connection: _note(connection, planned.row, planned.url, answer, called_s)
            )
        except ApiError:  # it is made again when its claim ends
            logger.warning("the webhook call %s was made, but that could not be noted", planned.row.id)

    async def _call(self, planned: _Planned, now_s: float) -> Answer:
        parts = urlsplit(planned.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        # What the operator has set is not checked.
        hosts = self._hosts if planned.row.url else self._anywhere
        try:
            addresses = await hosts.addresses(parts.hostname or "", port)
        except HostError as error:
            return Answer(None, f"the URL {error}")
        headers = headers_of(planned.row.id, planned.body, planned.secret, now_s)
        return await call(planned.url, headers, planned.body, addresses)


def _note(connection: Connection, row: WebhookCall, url: str, answer: Answer, now_s: float) -> None:
    """Note an attempt in the log of its job, and when the next one is due, if there is one."""
    is_over = answer.is_success or answer.is_gone or now_s - row.created_at >= GIVE_UP_AFTER_S
    next_s = None
    if is_over:
        webhook_calls.remove_call(connection, row.id)
    else:
        next_s = now_s + min(FIRST_PAUSE_S * 2 ** min(row.num_failed, 20), webhook_calls.MAX_PAUSE_S)
        webhook_calls.repeat_call(connection, row.id, next_s)
    job: Job | None = jobs.get_job(connection, row.job_id)
    if job is None:
        return
    shown = without_password(url)
    add_event(
        connection, job, "webhook", now_s,
        url=shown, event=row.event, status=answer.status, problem=answer.problem, next_at=next_s,
    )  # fmt: skip
    if not answer.is_success:
        problem = answer.problem or f"status {answer.status}"
        end = "it is given up" if next_s is None else "it will be called again"
        logger.warning("the webhook %s of %s failed (%s); %s", shown, row.job_id, problem, end)
