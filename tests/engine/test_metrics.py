"""Metrics of an engine: the counters of requests, steps and memory."""

from engine.core.events import FinishedEvent, TokenEvent
from engine.core.terms import FinishReason, Lane
from engine.loop import EngineLoop
from engine.loop_messages import Abort, Add, QueryStats, StatsEvent, Stop
from engine.metrics import RECENT_REQUESTS, EngineMetrics
from tests.factories import request, scheduler_for, simulated_runner


def finished(*, slo_met: bool | None = None, lane: Lane = Lane.RT) -> FinishedEvent:
    return FinishedEvent(
        "r", lane, FinishReason.LENGTH, num_prompt_tokens=3, num_output_tokens=2, num_cached_tokens=1, e2e_s=1.0,
        slo_met=slo_met,
    )  # fmt: skip


def test_attainment_is_counted_in_total_and_over_the_latest():
    metrics = EngineMetrics()
    metrics.observe_events([finished(slo_met=False)] * 100 + [finished(slo_met=None)])
    metrics.observe_events([finished(slo_met=True)] * (RECENT_REQUESTS - 50))
    assert metrics.lanes[Lane.RT].slo.snapshot() == {
        "met": RECENT_REQUESTS - 50,
        "missed": 100,
        "recent_ratio": (RECENT_REQUESTS - 50) / RECENT_REQUESTS,
    }
    assert metrics.lanes[Lane.BE].slo.snapshot() == {"met": 0, "missed": 0, "recent_ratio": None}


def test_finished_requests_are_counted_among_other_events():
    metrics = EngineMetrics()
    tokens = [TokenEvent(f"r{i}", i, None) for i in range(5)]
    metrics.observe_events([*tokens, finished(), finished(lane=Lane.BE)])
    metrics.observe_events([StatsEvent("t", {}), finished(), StatsEvent("u", {})])
    assert metrics.lanes[Lane.RT].finished == {"length": 2}
    assert metrics.lanes[Lane.BE].finished == {"length": 1}


def test_every_request_of_a_run_is_counted():
    """Including one that is aborted and one that is rejected, whose end comes before the tokens of the same step."""
    runner = simulated_runner()
    scheduler = scheduler_for(runner.info)
    requests = [request(lane=lane, max_tokens=5 + i) for i, lane in enumerate([Lane.RT, Lane.BE] * 20)]
    too_long = request(range(3, 400), lane=Lane.RT)
    mail = [[Add(each) for each in requests], [Abort(requests[-1].request_id), Add(too_long)]]
    events, now_s = [], 0.0

    def receive(wait):
        if mail:
            return mail.pop(0)
        return [] if scheduler.has_work else [QueryStats("t"), Stop()]

    def clock():
        nonlocal now_s
        now_s += 0.001
        return now_s

    outlooks = []
    EngineLoop(scheduler, runner, receive, events.extend, clock, outlooks.append).run()
    (stats,) = [event.values for event in events if isinstance(event, StatsEvent)]
    assert stats["lanes"]["rt"]["finished"] == {"length": 20, "error": 1}
    assert stats["lanes"]["be"]["finished"] == {"length": 19, "abort": 1}
    num_tokens = dict.fromkeys(Lane, 0)
    by_id = {each.request_id: each.lane for each in requests}
    for event in events:
        if isinstance(event, TokenEvent):
            num_tokens[by_id[event.request_id]] += 1
    for lane in Lane:
        assert stats["lanes"][lane.value]["output_tokens"] == num_tokens[lane]
        assert stats["lanes"][lane.value]["generated_tokens"] == num_tokens[lane]
    assert outlooks[-1].num_received == 21
    assert outlooks[-1].num_received_tokens == 20 * 3 + 397
    assert (outlooks[-1].num_requests, outlooks[-1].backlog_tokens, outlooks[-1].step_s) == (0, 0, 0.0)


def test_the_memory_map_is_renewed_once_per_second():
    scheduler = scheduler_for(simulated_runner().info)
    metrics = EngineMetrics()
    first = metrics.memory(scheduler.kv, 10.0)
    assert first["block_size"] == 4
    assert sum(first["left"]) == 0
    scheduler.kv.extend(request(lane=Lane.RT), 3)
    assert metrics.memory(scheduler.kv, 10.9) == first
    assert sum(metrics.memory(scheduler.kv, 11.0)["left"]) == 3
