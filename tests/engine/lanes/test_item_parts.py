"""Items with several prompts: one request per part and output, and one result with all of them."""

from __future__ import annotations

from typing import Any

from engine.core.events import TokenEvent
from engine.lanes.pulled_item import PulledItem
from engine.lanes.translation import sampling_params
from engine.wire import item_messages, redis_keys
from engine.wire.item_messages import Choice, ItemRequest, ItemResult
from engine.wire.request_terms import Part, Sampling
from tests.engines import running_engine
from tests.factories import run_to_end, scheduler_for, simulated_runner
from tests.services import RedisServer, wait_for

DOCUMENT = list(range(10, 50))
SCORES = Sampling(max_tokens=0, score_token_ids=(4, 9))
TOKENS = Sampling(max_tokens=4, temperature=0.0, ignore_eos=True)
MEAN = Sampling(max_tokens=0, pooling="mean")
PARTS = [Part([60], SCORES), Part([61, 62], TOKENS), Part([], MEAN)]


def computed(item: ItemRequest) -> ItemResult:
    runner = simulated_runner(num_blocks=400)
    scheduler = scheduler_for(runner.info)
    pulled = PulledItem(b"1-0", item)
    for request in pulled.requests():
        scheduler.add(request)
    outputs = run_to_end(scheduler, runner)
    for i, request_id in enumerate(pulled.request_ids):
        for token_id in outputs.token_ids.get(request_id, []):
            pulled.record(i, TokenEvent(request_id, token_id, None))
        pulled.record(i, outputs.finished[request_id])
    assert pulled.is_finished
    return pulled.result("engine")


def test_choices_are_those_of_each_part_in_order() -> None:
    runner = simulated_runner(num_blocks=400)
    item = ItemRequest(1, 1, "job", DOCUMENT, Sampling(max_tokens=1), n=2, parts=PARTS)
    result = computed(item)
    assert result.error_code is None
    assert len(result.choices) == 6
    scores = runner.prompt_result([*DOCUMENT, 60], sampling_params(SCORES)).scores
    assert scores is not None
    assert result.choices[0] == result.choices[1] == Choice([], "length", scores=list(scores))
    output = runner.continuation([*DOCUMENT, 61, 62], sampling_params(TOKENS))
    tail = [*DOCUMENT[-22:], 61, 62]
    assert result.choices[2] == result.choices[3] == Choice(output, "length", prompt_tail=tail)
    embedding = result.choices[4].embedding
    assert embedding is not None
    assert len(embedding) == 4 * runner.info.hidden_size
    assert result.choices[5] == result.choices[4]
    assert result.prompt_tokens == 41 + 42 + 40
    assert result.cached_tokens == 40 + 40 + 0, "a mean needs the hidden states of all tokens"


def test_an_item_with_parts_is_pulled_and_its_result_pushed(server: RedisServer, tmp_path: Any) -> None:
    with server.cli() as redis, running_engine(tmp_path, redis_url=server.url, max_num_seqs=8) as engine:
        item = ItemRequest(7, 1, "job", DOCUMENT, Sampling(max_tokens=1), parts=PARTS)
        redis.xadd(redis_keys.items_key("sim"), {"p": item_messages.encode(item), "i": 7, "e": 1})
        entries = wait_for(lambda: redis.xrange(redis_keys.RESULTS_KEY))
        result = item_messages.decode_item_result(entries[0][1][b"p"])
        expected = engine.runner.prompt_result([*DOCUMENT, 60], sampling_params(SCORES))
    assert result.error_code is None
    assert result.choices[0].scores == list(expected.scores)
    assert len(result.choices[1].token_ids) == 4
    assert result.choices[2].embedding is not None
