"""The events of a step reach all their owners, whatever one of these does with its own."""

from __future__ import annotations

import logging

import pytest

from engine.core.events import FinishedEvent, TokenEvent
from engine.core.terms import FinishReason, Lane
from engine.lanes.exchange import Exchange, Mailbox
from engine.lanes.loop_watch import LoopWatch
from engine.loop_messages import Abort, Add
from engine.pulse import Pulse
from tests.factories import request


def end_of(name: str) -> FinishedEvent:
    return FinishedEvent(name, Lane.RT, FinishReason.LENGTH, 3, 2, 0, 1.0)


@pytest.mark.parametrize("raises_at", [0, 1, 2])
def test_an_error_in_one_sink_ends_only_its_request(raises_at: int, caplog: pytest.LogCaptureFixture) -> None:
    mailbox = Mailbox()
    exchange = Exchange(mailbox, LoopWatch(Pulse(), lambda: False, 60.0, is_patient=False))
    received: dict[str, list[object]] = {"a": [], "bad": [], "b": []}
    flushed = []
    for name, got in received.items():

        def sink(event: object, name: str = name, got: list[object] = got) -> None:
            got.append(event)
            if name == "bad" and len(got) == raises_at + 1:
                raise KeyError("choices")

        exchange.submit(request(request_id=name), sink)

    def broken() -> None:
        raise OSError("connection reset")

    exchange.after_step(broken)
    exchange.after_step(lambda: flushed.append(1))
    steps = [
        [TokenEvent(name, 5, None) for name in received],
        [TokenEvent(name, 6, None) for name in received],
        [end_of(name) for name in received],
    ]
    with caplog.at_level(logging.ERROR):
        for events in steps:
            exchange.dispatch(events)
    assert flushed == [1, 1, 1]
    for name in ("a", "b"):
        assert received[name] == [step[list(received).index(name)] for step in steps]
    last = received["bad"][-1]
    assert isinstance(last, FinishedEvent) and last.reason is FinishReason.ERROR
    assert "KeyError" in (last.message or "")
    assert len(received["bad"]) == raises_at + 2, "nothing follows the end"
    messages = mailbox.receive(0.0)
    assert [type(message) for message in messages] == [Add] * 3 + [Abort] * (raises_at < 2)
    assert any("request bad" in record.getMessage() for record in caplog.records)


def test_a_sink_that_cannot_even_be_told_of_the_end_holds_up_nobody() -> None:
    exchange = Exchange(Mailbox(), LoopWatch(Pulse(), lambda: False, 60.0, is_patient=False))
    received: list[object] = []

    def broken(event: object) -> None:
        raise RuntimeError("no")

    exchange.submit(request(request_id="bad"), broken)
    exchange.submit(request(request_id="good"), received.append)
    exchange.dispatch([TokenEvent("bad", 5, None), TokenEvent("good", 5, None)])
    exchange.dispatch([end_of("bad"), end_of("good")])
    assert received == [TokenEvent("good", 5, None), end_of("good")]
