"""Queues drop what has ended, wherever it is."""

from __future__ import annotations

import pytest

from engine.core.queues import MIN_CLEARED, PromptQueue, WaitingQueue
from engine.core.request import Request, State
from engine.core.terms import Lane
from tests.factories import request


def waiting(number: int, lane: Lane) -> Request:
    made = request([5, 6, 7], lane=lane)
    made.sort_key, made.order = (0.0, 0.0, number), number
    return made


@pytest.mark.parametrize(("queue", "lane"), [(WaitingQueue(), Lane.BE), (PromptQueue(), Lane.RT)])
def test_requests_that_ended_behind_others_are_not_kept(
    queue: WaitingQueue | PromptQueue, lane: Lane
) -> None:
    alive = [waiting(i, lane) for i in range(5)]
    for each in alive:
        queue.push(each)
    for i in range(20 * MIN_CLEARED):
        ended = waiting(100 + i, lane)
        queue.push(ended)
        ended.state = State.DONE
    assert len(queue) <= MIN_CLEARED
    order = []
    while (first := queue.peek()) is not None:
        order.append(first)
        first.state = State.DONE
    assert order == alive


def test_a_request_that_waits_again_and_again_is_in_the_queue_a_few_times() -> None:
    queue, first, other = WaitingQueue(), waiting(0, Lane.BE), waiting(1, Lane.BE)
    queue.push(first)
    for _ in range(20 * MIN_CLEARED):
        queue.push(other)
    assert len(queue) <= MIN_CLEARED
    assert queue.peek() is first
