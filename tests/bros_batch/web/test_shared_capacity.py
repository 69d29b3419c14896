"""Shares of a limited resource are given out in order, and nothing is lost when someone stops waiting."""

from __future__ import annotations

import asyncio

import pytest

from bros_batch.web.errors import ApiError
from bros_batch.web.shared_capacity import MAX_WAITING, SharedCapacity

HERE, THERE, ELSEWHERE = "127.0.0.1", "192.0.2.1", "192.0.2.2"


class Request:
    """A request that holds a share on a task of its own until `end`."""

    def __init__(self, shared: SharedCapacity, *units: int, address: str = HERE) -> None:
        self.held = 0
        self._may_grow = asyncio.Event()
        self._may_end = asyncio.Event()
        self.task = asyncio.create_task(self._run(shared, units, address))

    async def _run(self, shared: SharedCapacity, units: tuple[int, ...], address: str) -> None:
        async with shared.share(address) as share:
            for number, each in enumerate(units):
                if number:
                    await self._may_grow.wait()
                await share.grow(each)
                self.held += each
            await self._may_end.wait()

    async def grow(self) -> None:
        self._may_grow.set()
        await settle()

    async def end(self) -> None:
        self._may_end.set()
        await self.task
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def started(shared: SharedCapacity, *units: int, address: str = HERE) -> Request:
    request = Request(shared, *units, address=address)
    await settle()
    return request


async def stop(*requests: Request) -> None:
    for request in requests:
        request.task.cancel()
    await asyncio.gather(*(request.task for request in requests), return_exceptions=True)


async def test_requests_take_turns_in_order() -> None:
    shared = SharedCapacity(10)
    first, second, small = [await started(shared, units) for units in (10, 10, 1)]
    assert (first.held, second.held, small.held) == (10, 0, 0)
    await first.end()
    assert (second.held, small.held) == (10, 0), "nobody overtakes"
    await second.end()
    assert small.held == 1
    await small.end()


async def test_an_older_share_grows_before_a_newer_one_begins() -> None:
    shared = SharedCapacity(10)
    first, older = await started(shared, 5), await started(shared, 5, 4)
    newer = await started(shared, 4)
    await older.grow()
    await first.end()
    assert (older.held, newer.held) == (9, 0)
    await older.end()
    assert newer.held == 4
    await newer.end()


async def test_shares_that_all_want_to_grow_do_not_wait_for_each_other_for_ever() -> None:
    shared = SharedCapacity(10)
    requests = [await started(shared, 5, 5) for _ in range(2)]
    for request in reversed(requests):
        await request.grow()
    assert [request.held for request in requests] == [10, 5]
    for request in requests:
        await request.end()
    assert [request.held for request in requests] == [10, 10]


async def test_one_address_holds_at_most_half() -> None:
    shared = SharedCapacity(10)
    mine = [await started(shared, 2, address=THERE) for _ in range(4)]
    others = [await started(shared, 2, address=ELSEWHERE) for _ in range(2)]
    assert [request.held for request in mine] == [2, 2, 0, 0]
    assert [request.held for request in others] == [2, 2]
    await mine[0].end()
    assert [request.held for request in mine] == [2, 2, 2, 0]
    await stop(*mine, *others)


async def test_one_address_is_at_most_half_of_those_that_wait() -> None:
    shared = SharedCapacity(1)
    holder = await started(shared, 1)
    mine = [await started(shared, 1, address=THERE) for _ in range(MAX_WAITING // 2)]
    one_more = await started(shared, 1, address=THERE)
    other = await started(shared, 1, address=ELSEWHERE)
    with pytest.raises(ApiError):
        await one_more.task
    assert not other.task.done()
    await stop(holder, *mine, other)


async def test_a_request_that_no_longer_waits_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = SharedCapacity(10)
    holder, cancelled, small = [await started(shared, units) for units in (9, 5, 1)]
    assert small.held == 0
    await stop(cancelled)
    await settle()
    assert small.held == 1, "it waited only behind the cancelled one"
    monkeypatch.setattr("bros_batch.web.shared_capacity.WAIT_S", 0.01)
    with pytest.raises(ApiError) as caught:
        await Request(shared, 1).task
    assert (caught.value.status, caught.value.code) == (503, "overloaded")
    await holder.end()
    await small.end()
    full = await started(shared, 10)
    assert full.held == 10
    await full.end()


async def test_the_queue_is_bounded() -> None:
    shared = SharedCapacity(1)
    holder = await started(shared, 1)
    waiting = [await started(shared, 1) for _ in range(MAX_WAITING)]
    with pytest.raises(ApiError):
        await Request(shared, 1).task
    await stop(holder, *waiting)
    last = await started(shared, 1)
    assert last.held == 1
    await last.end()
