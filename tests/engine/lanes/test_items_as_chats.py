"""Items of the RT lane: they are computed as chats, and as bulk once an engine has begun them and died."""

from __future__ import annotations

import pytest

from engine.core.request import Request
from engine.core.terms import SLO, Lane
from engine.lanes.exchange import Exchange
from engine.wire.request_terms import Sampling
from tests.engine.lanes.test_item_puller import add, read_as, results, slow_runner
from tests.engines import running_engine
from tests.services import wait_for

LONG = Sampling(max_tokens=15_000, temperature=0.0, ignore_eos=True)


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Every request that is passed to the main loop."""
    found: list[Request] = []
    submit = Exchange.submit

    def noted(self: Exchange, request: Request, *rest: object) -> None:
        found.append(request)
        submit(self, request, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Exchange, "submit", noted)
    return found


def test_an_item_of_the_rt_lane_overtakes_bulk_that_holds_the_engine(tmp_path, server, redis, submitted):
    for number in range(40):
        add(redis, number, sampling=LONG)
    with running_engine(tmp_path, slow_runner(0.002), redis_url=server.url) as engine:
        wait_for(lambda: all(engine.scheduler.num_requests(Lane.BE)))  # some run, some wait for a row
        add(redis, 100, lane="rt", priority=1_000_000, n=2)
        answer = results(redis, 1)[100]
    assert len(answer.choices) == 2
    chats = [request for request in submitted if request.lane is Lane.RT]
    assert [request.request_id.split(":")[0] for request in chats] == ["b100", "b100"]
    assert {request.slo for request in chats} == {SLO(0.5, 0.1)}


def test_an_item_that_another_engine_had_begun_is_bulk(tmp_path, server, redis, submitted):
    add(redis, 1, lane="rt")
    read_as(redis, "engine-0", 1)
    with running_engine(tmp_path, redis_url=server.url):
        results(redis, 1)
    assert [request.lane for request in submitted] == [Lane.BE]
