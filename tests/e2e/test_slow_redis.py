"""Guarantee: a Redis that answers late, or not at all for seconds, makes a job slow, but no line runs twice for it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.e2e.known_jobs import (
    IMPATIENT,
    Api,
    assert_every_line_once,
    max_attempts_of,
    simulated_engine,
    write_job,
)
from tests.services import redis_server, wait_for
from tests.slow_redis import slow_redis
from tests.up_process import running_up

REPLY_DELAY_S = 0.1
STALL_S = 4.0  # longer than the timeouts of IMPATIENT
NUM_LINES = 160
# An item counts as lost only after a minute, as by default; all other timeouts fire.
SETTINGS = {**IMPATIENT, "BROS_QUEUE_MAX_ITEMS": "60", "BROS_LOST_AFTER_S": "60"}


@pytest.mark.slow
def test_every_line_has_one_result_with_a_slow_redis(tmp_path: Path) -> None:
    job = write_job(tmp_path / "in.jsonl", NUM_LINES, max_tokens=8)
    database_url = f"sqlite:///{tmp_path / 'bros.db'}"
    with (
        redis_server() as redis,
        slow_redis(redis.socket, redis.socket.with_name("slow.sock"), REPLY_DELAY_S) as proxy,
        running_up(
            tmp_path / "data",
            engine=simulated_engine(),
            BROS_DATABASE_URL=database_url,
            BROS_REDIS_URL=proxy.url,
            **SETTINGS,
        ) as up,
        Api(up.state()["url"]) as api,
    ):
        batch_id = api.submit(job)
        for share in (0.1, 0.5):
            wait_for(lambda share=share: api.num_done(batch_id) >= share * NUM_LINES, timeout_s=120)
            proxy.stall()
            time.sleep(STALL_S)  # this is the fault, not a wait for something
            proxy.flow()
        assert_every_line_once(api, batch_id, job, tmp_path / "data-model", database_url)
        assert max_attempts_of(database_url, batch_id) == 0, "nothing was lost"
