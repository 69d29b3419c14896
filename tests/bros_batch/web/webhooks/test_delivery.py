"""Webhooks: what they are told, and that they are told until they listen, whoever dies or is slow meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
from openai import InvalidWebhookSignatureError, OpenAI
from sqlalchemy import Connection, Engine

from bros_batch.db import job_events, response_jobs, responses
from bros_batch.db.api_keys import KeyTerms, create_api_key
from bros_batch.db.connections import reading, writing
from bros_batch.db.table_rows import JobEvent, StoredResponse
from bros_batch.web.job_log import log_lines
from bros_batch.web.webhooks.delivery import AT_ONCE_PER_HOST, CLAIM_S, Delivery
from tests.bros_batch.web.webhooks.receiver import SECRET, Receiver
from tests.bros_batch.world import World, batch_lines

T = TypeVar("T")


class Direct:
    """The database without the threads of a server."""

    def __init__(self, database: Engine) -> None:
        self._database = database

    async def read(self, query: Callable[[Connection], T]) -> T:
        with reading(self._database) as connection:
            return query(connection)

    async def write(self, query: Callable[[Connection], T]) -> T:
        with writing(self._database) as connection:
            return query(connection)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def options(receiver: Receiver) -> Iterator[dict[str, Any]]:
    with receiver.serving() as url:
        yield {"webhook_url": url, "webhook_secret": SECRET, "webhook_hosts": ["127.0.0.0/8"]}


async def deliver(world: World, now_s: float | None = None) -> None:
    """Make the calls that are due at a time."""
    delivery = Delivery(world.settings, Direct(world.database))
    while await delivery.start_due(now_s):
        await delivery.finish()
    await delivery.finish()


def log_of(world: World, job_id: str) -> list[JobEvent]:
    with reading(world.database) as connection:
        return [each for each in job_events.list_events(connection, job_id) if each.kind == "webhook"]


def cancelled(world: World, **job: Any) -> str:
    job_id = world.submit(batch_lines(1), **{"notify_url": "", **job})
    world.cancel(job_id)
    world.finalize(job_id)
    return job_id


async def test_each_way_in_which_a_job_ends_is_an_event_that_the_client_verifies(
    world: World, receiver: Receiver
) -> None:
    with writing(world.database) as connection:
        key, _ = create_api_key(connection, "ann", terms=KeyTerms("ann", notify_url="https://unused.test"))
    url = f"{world.settings.webhook_url}/of-the-job?token=hidden"
    silent = world.running(batch_lines(1))
    done = world.running(batch_lines(2), notify_url=url, notify_key_id=key.id)
    late = world.running(batch_lines(1), notify_url=url, notify_key_id=key.id, deadline_at=1.0, now_s=0.5)
    failed = world.submit(b"\n", notify_url=url, notify_key_id=key.id)
    world.ingest(failed)
    stopped = cancelled(world, notify_url=url, notify_key_id=key.id)
    world.sweep()
    world.finalize(late)
    for job_id in (silent, done):
        world.run_through(job_id)
    await deliver(world)
    assert key.notify_secret is not None
    assert sorted(receiver.events(key.notify_secret)) == sorted(
        [
            ("batch.completed", done), ("batch.expired", late), ("batch.failed", failed),
            ("batch.cancelled", stopped),
        ]
    )  # fmt: skip
    body, headers = receiver.calls[0]
    client = OpenAI(api_key="x", base_url="http://unused")
    for wrong in ((body + " ", key.notify_secret), (body, SECRET)):
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.unwrap(wrong[0], headers, secret=wrong[1])
    await deliver(world)
    assert len(receiver.calls) == 4, "each is told once"
    (event,) = log_of(world, done)
    assert event.detail["status"] == 200
    assert [(kind, line) for _, kind, line in log_lines([event])] == [
        ("webhook completed", f"Webhook {world.settings.webhook_url}/of-the-job was told: status 200")
    ]


def started(world: World, response_id: str, body: str = '{"model": "sim", "input": "Hello"}') -> str:
    with writing(world.database) as connection:
        job_id = response_jobs.create_response_job(
            connection,
            endpoint="/v1/responses",
            model="sim",
            body=body,
            priority=0,
            now_s=1000.0,
            notify_url="",
        )
        row = StoredResponse(response_id, "", None, job_id, 0, 0, "[]", "{}", 1000.0, None)
        responses.create_response(connection, row, [])
    return job_id


async def test_each_way_in_which_a_response_ends_is_an_event(world: World, receiver: Receiver) -> None:
    jobs = [started(world, "resp_done"), started(world, "resp_bad", '{"model": "sim", "input": []}')]
    jobs += [started(world, "resp_stopped"), started(world, "resp_deleted")]
    await deliver(world)
    assert receiver.calls == [], "none has ended"
    for job_id in jobs[2:]:
        world.cancel(job_id)
    world.prepare()
    world.engine.answer(world.engine.take())
    world.record()
    for job_id in jobs:
        world.finalize(job_id)
    with writing(world.database) as connection:
        responses.delete_responses(connection, ["resp_deleted"])
    await deliver(world)
    assert sorted(receiver.events()) == [
        ("response.cancelled", "resp_stopped"),
        ("response.completed", "resp_done"),
        ("response.failed", "resp_bad"),
    ]


async def test_a_call_that_fails_is_repeated_with_growing_pauses_and_given_up(
    world: World, receiver: Receiver
) -> None:
    job_id = cancelled(world)
    receiver.status = 302
    receiver.location = world.settings.webhook_url.replace("hook", "followed")
    ended_s = world.job(job_id).cancelled_at
    assert ended_s is not None
    for after_s, calls in (
        (0, 1),
        (4, 1),
        (6, 2),
        (15, 2),
        (17, 3),
        (71 * 3600, 4),
        (74 * 3600, 5),
        (200 * 3600, 5),
    ):
        await deliver(world, ended_s + after_s)
        assert len(receiver.calls) == calls, after_s
    assert len(set(receiver.ids)) == 1
    log = log_of(world, job_id)
    assert [each.detail["status"] for each in log] == [302] * 5
    pauses = [next_at and round(next_at - each.at) for each in log for next_at in (each.detail["next_at"],)]
    assert pauses == [5, 10, 20, 40, None]
    assert {kind for _, kind, _ in log_lines(log)} == {"webhook failed"}
    lines = [line for _, _, line in log_lines(log)]
    assert "status 302" in lines[-1] and "after 5 s" in lines[-1]
    assert "given up" in lines[0]


async def test_a_receiver_that_is_gone_for_good_is_not_called_again(world: World, receiver: Receiver) -> None:
    job_id = cancelled(world)
    receiver.status = 410
    await deliver(world)
    await deliver(world, 1e10)
    assert len(receiver.calls) == 1
    assert "given up" in log_lines(log_of(world, job_id))[0][2]


async def test_whoever_starts_after_a_death_makes_the_same_call_again(
    world: World, receiver: Receiver
) -> None:
    ended_s = world.job(cancelled(world)).cancelled_at
    assert ended_s is not None
    receiver.may_answer.clear()
    dead = Delivery(world.settings, Direct(world.database))
    await dead.start_due(ended_s)
    while not receiver.calls:
        await asyncio.sleep(0.005)
    await deliver(world, ended_s + CLAIM_S - 1)
    assert len(receiver.calls) == 1, "it may be alive"
    for task in dead._running:
        task.cancel()
    receiver.may_answer.set()
    await deliver(world, ended_s + CLAIM_S + 1)
    await deliver(world, ended_s + 1e6)
    assert len(receiver.calls) == 2
    assert len(set(receiver.ids)) == 1


async def test_a_clock_that_is_set_back_delays_no_call(world: World, receiver: Receiver) -> None:
    ended_s = world.job(cancelled(world)).cancelled_at
    assert ended_s is not None
    await deliver(world, ended_s - 24 * 3600)
    assert len(receiver.calls) == 1


async def test_a_receiver_that_does_not_answer_delays_no_other(world: World, receiver: Receiver) -> None:
    """Not even one that many jobs tell of their ends, before another job does."""
    receiver.may_answer.clear()
    for _ in range(AT_ONCE_PER_HOST + 5):
        cancelled(world)
    other = Receiver()
    delivery = Delivery(world.settings, Direct(world.database))
    with other.serving() as url:
        job_id = cancelled(world, notify_url=url.replace("127.0.0.1", "localhost"))
        running = asyncio.create_task(delivery.run())
        while not other.calls:
            await asyncio.sleep(0.005)
        assert other.events() == [("batch.cancelled", job_id)]
        receiver.may_answer.set()
        while len(receiver.calls) < AT_ONCE_PER_HOST + 5:
            await asyncio.sleep(0.005)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert len(set(receiver.ids)) == AT_ONCE_PER_HOST + 5


@pytest.mark.parametrize("options", [{"webhook_secret": SECRET}])
async def test_a_host_of_the_own_network_is_not_called_when_its_name_leads_there_later(world: World) -> None:
    """A job names it while it leads elsewhere: what counts is where it leads when it is called."""
    receiver = Receiver()
    with receiver.serving() as url:
        job_id = cancelled(world, notify_url=url.replace("127.0.0.1", "localhost"))
        await deliver(world)
    assert receiver.calls == []
    (event,) = log_of(world, job_id)
    assert "localhost, which webhooks may not call" in event.detail["problem"]
    assert event.detail["next_at"] is not None
