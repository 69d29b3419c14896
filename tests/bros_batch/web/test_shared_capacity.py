"""Shares of a limited resource are given out in order, and nothing is lost when someone stops waiting."""

from __future__ import annotations

import asyncio

import pytest

from bros_batch.web.errors import ApiError
from bros_batch.web.shared_capacity import MAX_WAITING, SharedCapacity


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_requests_take_turns_in_order() -> None:
    shared = SharedCapacity(10)
    first, second = shared.reserve(10), shared.reserve(20)
    await first.__aenter__()
    waiting = asyncio.create_task(second.__aenter__())
    await settle()
    small = asyncio.create_task(shared.reserve(1).__aenter__())
    await settle()
    await first.__aexit__(None, None, None)
    await waiting  # has all ten
    await settle()
    assert not small.done()  # nobody overtakes
    await second.__aexit__(None, None, None)
    await small


async def test_a_request_that_no_longer_waits_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = SharedCapacity(10)
    async with shared.reserve(10):
        cancelled = asyncio.create_task(shared.reserve(5).__aenter__())
        next_one = asyncio.create_task(shared.reserve(10).__aenter__())
        await settle()
        cancelled.cancel()
        monkeypatch.setattr("bros_batch.web.shared_capacity.WAIT_S", 0.01)
        with pytest.raises(ApiError) as caught:
            await shared.reserve(1).__aenter__()
        assert (caught.value.status, caught.value.code) == (503, "overloaded")
    await next_one


async def test_the_queue_is_bounded() -> None:
    shared = SharedCapacity(1)
    async with shared.reserve(1):
        waiting = [asyncio.create_task(shared.reserve(1).__aenter__()) for _ in range(MAX_WAITING)]
        await settle()
        with pytest.raises(ApiError):
            await shared.reserve(1).__aenter__()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    async with shared.reserve(1):
        pass
