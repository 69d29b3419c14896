"""Items of jobs that no engine can compute, in a real Redis: each fails by itself, with what is wrong with it."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from engine.core.terms import Lane
from engine.wire import item_messages, redis_keys
from engine.wire.item_messages import ItemResult
from tests.engines import running_engine
from tests.services import RedisServer, wait_for

KEY = redis_keys.items_key("sim")
VALID = {"max_tokens": 6, "temperature": 0.0, "ignore_eos": True}
WRONG_ITEMS: list[tuple[str, dict[str, Any]]] = [
    ("stop_token_ids", {"sampling": {**VALID, "min_tokens": 1, "stop_token_ids": [151_645]}}),
    ("logit_bias", {"sampling": {**VALID, "logit_bias": [[191_222, -100.0]]}}),
    ("temperature", {"sampling": {**VALID, "temperature": math.nan}}),
    ("min_tokens", {"sampling": {**VALID, "min_tokens": 2**63}}),
    ("n", {"n": 10**9}),
    ("n", {"n": 0}),
    ("priority", {"priority": -(2**63)}),
    ("deadline_unix_s", {"deadline_unix_s": math.nan}),
    ("deadline_unix_s", {"deadline_unix_s": -math.inf}),
    ("vocabulary", {"token_ids": [5, -1]}),
    ("stop", {"sampling": {**VALID, "stop": ["a" * 5000]}}),
]


def test_items_that_no_engine_can_compute_fail_alone(server: RedisServer, tmp_path: Any) -> None:
    with server.cli() as redis, running_engine(tmp_path, redis_url=server.url, max_num_seqs=8) as engine:

        def add(item_id: int, **fields: Any) -> None:
            item = {
                "item_id": item_id,
                "epoch": 1,
                "job_id": "job",
                "token_ids": [5, item_id],
                "sampling": VALID,
            }
            redis.xadd(KEY, {"p": msgspec.msgpack.encode({**item, **fields}), "i": item_id, "e": 1})

        def results() -> dict[int, ItemResult] | None:
            entries = redis.xrange(redis_keys.RESULTS_KEY)
            if len(entries) < 2 * len(WRONG_ITEMS):
                return None
            decoded = [item_messages.decode_item_result(fields[b"p"]) for _, fields in entries]
            return {result.item_id: result for result in decoded}

        for number, (_, fields) in enumerate(WRONG_ITEMS):
            add(100 + number)
            add(number, **fields)
        found = wait_for(results)
        for number, (word, _) in enumerate(WRONG_ITEMS):
            wrong, good = found[number], found[100 + number]
            assert wrong.error_code == "invalid_request"
            assert word in (wrong.error_message or "")
            assert good.error_code is None
            assert len(good.choices[0].token_ids) == 6
        assert engine.scheduler.num_requests(Lane.BE) == (0, 0)
