"""What engines tell of the rows that they compute, as the API and the job's page say it."""

from __future__ import annotations

import time
from typing import Any

from bros_batch.db import engines
from bros_batch.db.connections import reading, writing
from bros_batch.db.in_flight import InFlight, in_flight
from bros_batch.web.api.batch_object import batch_object
from bros_batch.web.dashboard.job_words import being_computed
from tests.bros_batch.world import World, batch_lines


def engine_tells(world: World, engine_id: str, held: Any, silent_s: float = 0.0) -> None:
    heartbeat = {"engine_id": engine_id, "model": "sim", "jobs": held}
    with writing(world.database) as connection:
        engines.upsert_engines(connection, [heartbeat], time.time() - silent_s)


def test_the_rows_of_all_engines_that_live_are_counted_together(world: World) -> None:
    running, other, ended = (world.running(batch_lines(3)) for _ in range(3))
    world.cancel(ended)
    world.finalize(ended)
    engine_tells(world, "a", {running: [3, 2, 700], ended: [1, 1, 5]})
    engine_tells(world, "b", {running: [1, 0, 0], "batch_unknown": [1, 1, 1]})
    engine_tells(world, "silent", {running: [9, 9, 9]}, silent_s=3600)
    for number, damaged in enumerate((None, [1], {other: [1, 1]}, {other: [1, -1, "x"]}, {other: 3})):
        engine_tells(world, f"damaged-{number}", damaged)
    asked = [world.job(job_id) for job_id in (running, other, ended)]
    with reading(world.database) as connection:
        found = in_flight(connection, asked, time.time())
    assert found[running] == InFlight(4, 2, 700)
    assert list(found) == [running], "not those that are told wrongly, nor those that have ended"
    shown = batch_object(asked[0], in_flight=found[running])["in_flight"]
    assert shown == {"items": 4, "begun": 2, "output_tokens": 700}
    assert batch_object(asked[1])["in_flight"] is None
    assert being_computed(found[running]) == "2 rows · 700 tokens so far"
    assert being_computed(InFlight(1, 1, 1)) == "1 row · 1 token so far"
    assert being_computed(InFlight(3)) == "3 rows"
