"""Guarantee: every submitted line ends in exactly one visible result, even if any process dies at any moment.

A job of 2,000 lines runs through all services on the simulated engine while they are killed with SIGKILL at random
moments.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.e2e.known_jobs import IMPATIENT, Api, assert_every_line_once, simulated_engine, write_job
from tests.services import wait_for
from tests.up_process import Up, running_up

NUM_LINES = 2000
VICTIMS = ("worker", "engine", "redis", "web", "beat")
ROUNDS = int(os.environ.get("BROS_TEST_KILL_ROUNDS", "2"))  # how often each victim is killed
SETTINGS = {
    **IMPATIENT,
    "BROS_QUEUE_MAX_ITEMS": "400",
    "BROS_INGEST_GROUP_LINES": "200",
    "BROS_MAX_ATTEMPTS": "50",
}


def kill_at_random(up: Up, api: Api, batch_id: str, rng: random.Random) -> int:
    """Kill each victim ROUNDS times while the job progresses. Returns the number of kills."""
    victims = list(VICTIMS) * ROUNDS
    rng.shuffle(victims)
    thresholds = sorted(rng.uniform(0, 0.9) * NUM_LINES for _ in victims)
    kills = 0
    for victim, threshold in zip(victims, thresholds, strict=True):

        def has_reached(done: float = threshold) -> bool:
            return api.num_done(batch_id) >= done or api.ended(batch_id) is not None

        wait_for(has_reached, timeout_s=120)
        up.kill(victim)
        kills += 1
    return kills


@pytest.mark.slow
def test_every_line_has_exactly_one_result_after_any_crash(tmp_path, database_url):
    job = write_job(tmp_path / "in.jsonl", NUM_LINES, max_tokens=24)
    with (
        running_up(
            tmp_path / "data", engine=simulated_engine(), BROS_DATABASE_URL=database_url, **SETTINGS
        ) as up,
        Api(up.state()["url"]) as api,
    ):
        batch_id = api.submit(job)
        assert kill_at_random(up, api, batch_id, random.Random(7)) == len(VICTIMS) * ROUNDS
        assert_every_line_once(api, batch_id, job, tmp_path / "data-model", database_url, timeout_s=240)
