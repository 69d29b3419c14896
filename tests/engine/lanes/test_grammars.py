"""Requests with a grammar, on both ways into a real engine: they wait for it outside of the core, and only they."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from transformers import AutoTokenizer

from engine.grammars import store
from engine.runner.torch_runner import TorchRunner
from engine.wire import item_messages, redis_keys
from engine.wire.client import EngineClient
from engine.wire.engine_errors import EngineRejected
from engine.wire.item_messages import ItemResult
from engine.wire.protocol import Finished, Tokens
from engine.wire.request_terms import Grammar, Sampling
from tests.engine.runner.driver import load_runner
from tests.engines import RunningEngine, running_engine
from tests.factories_models import make_model, make_tokenizer
from tests.services import RedisServer, wait_for

KEY = redis_keys.items_key("sim")
SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["color", "count"],
    "additionalProperties": False,
}  # fmt: skip
# Takes too long, and fails because of that.
SLOW = Grammar("json_schema", '{"type": "integer", "multipleOf": 9999991}')
BAD = {
    "type": "object",
    "properties": {"a": {"type": "array", "items": {"type": "string", "not": {"const": "x"}}}},
}
WORSE = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(?!x)"}}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_model("llama", tmp_path_factory.mktemp("model"))
    return make_tokenizer(path)


@pytest.fixture
def turns_s() -> tuple[float, ...]:
    """The turns of a grammar: less time than usual, so that slow ones fail early."""
    return (0.05,)


@pytest.fixture
def runner(model: Path, turns_s: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> Iterator[TorchRunner]:
    monkeypatch.setattr(store, "TURNS_S", turns_s)
    runner = load_runner(model)
    yield runner
    runner.close()


@pytest.fixture
async def client(runner: TorchRunner, tmp_path: Path) -> AsyncIterator[EngineClient]:
    with running_engine(tmp_path, runner) as engine:
        client = await EngineClient.connect(engine.url)
        yield client
        await client.close()


def schema(schema: Any, **fields: Any) -> Sampling:
    grammar = Grammar("json_schema", json.dumps(schema))
    return Sampling(**{"max_tokens": 100, "temperature": 0.0, "grammar": grammar, **fields})


async def collect(client: EngineClient, sampling: Sampling, **options: Any) -> tuple[list[int], Finished]:
    token_ids: list[int] = []
    async with client.submit([5, 6, 7], sampling, **options) as stream:
        async for message in stream:
            if isinstance(message, Tokens):
                token_ids += message.ids
            else:
                assert isinstance(message, Finished)
                return token_ids, message
    raise AssertionError("the stream ended without Finished")


def text_of(model: Path, token_ids: list[int]) -> str:
    return str(AutoTokenizer.from_pretrained(model).decode(token_ids, skip_special_tokens=True))


async def test_the_answer_of_a_chat_and_of_bulk_follows_its_schema(client: EngineClient, model: Path) -> None:
    answers = await asyncio.gather(
        *(
            collect(client, schema(SCHEMA, temperature=1.0, seed=i), lane=lane)
            for i, lane in enumerate(["rt", "be"] * 5)
        )
    )
    for token_ids, end in answers:
        assert end.output_tokens == len(token_ids)
        if end.reason == "stop":
            jsonschema.validate(json.loads(text_of(model, token_ids)), SCHEMA)
    assert any(end.reason == "stop" for _, end in answers)


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (Grammar("json_schema", json.dumps(BAD)), r"'not' is not supported \(at #/properties/a/items\)"),
        (Grammar("json_schema", json.dumps(WORSE)), r"'pattern' is not supported.*\(at #/properties/a\)"),
        (Grammar("json_schema", "{"), "not valid JSON"),
        (Grammar("regex", "("), "regular expression.*unclosed group"),
        (Grammar("lark", "start: other"), "Lark grammar.*other"),
    ],
)
async def test_an_unusable_grammar_is_rejected_with_the_reason(
    client: EngineClient, grammar: Grammar, words: str
) -> None:
    for _ in range(2):  # at first, and when it is known
        with pytest.raises(EngineRejected, match=rf"(?s){words}") as caught:
            await collect(client, Sampling(max_tokens=5, grammar=grammar))
        assert (caught.value.code, caught.value.param) == ("invalid_request", "grammar")
    assert (await collect(client, schema(SCHEMA)))[0]


@pytest.mark.parametrize("turns_s", [(0.05, 60.0)])
async def test_nobody_waits_for_the_grammar_of_another(client: EngineClient) -> None:
    slow = asyncio.create_task(collect(client, Sampling(max_tokens=5, grammar=SLOW)))
    await asyncio.gather(collect(client, Sampling(max_tokens=5)), collect(client, schema(SCHEMA)))
    assert not slow.done()
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow


@pytest.mark.slow
async def test_a_request_that_is_cancelled_while_its_grammar_is_compiled_never_starts(
    client: EngineClient, runner: TorchRunner
) -> None:
    stream = client.submit([5, 6, 7], Sampling(max_tokens=5, grammar=SLOW))
    async with stream:
        assert (await collect(client, Sampling(max_tokens=5)))[1].reason in ("stop", "length")
    with pytest.raises(EngineRejected):
        await collect(client, Sampling(max_tokens=5, grammar=SLOW))  # the engine knows it by now
    stats = await client.stats()
    assert sum(stats["lanes"]["rt"]["finished"].values()) == 1
    assert runner.grammars.counts.num_failed == 1


def items(redis: Any, number: int) -> dict[int, ItemResult] | None:
    entries = redis.xrange(redis_keys.RESULTS_KEY)
    decoded = [item_messages.decode_item_result(fields[b"p"]) for _, fields in entries]
    return {result.item_id: result for result in decoded} if len(decoded) == number else None


def add_item(redis: Any, item_id: int, sampling: Sampling) -> None:
    item = item_messages.ItemRequest(item_id, 1, "job", [5, 6, 7 + item_id], sampling)
    redis.xadd(KEY, {"p": msgspec.msgpack.encode(item), "i": item_id, "e": 1})


@pytest.mark.slow
def test_items_share_a_compiled_grammar_and_fail_alone(
    server: RedisServer, runner: TorchRunner, model: Path, tmp_path: Path
) -> None:
    with server.cli() as redis, running_engine(tmp_path, runner, redis_url=server.url):
        redis.flushall()
        add_item(redis, 1, Sampling(max_tokens=5, grammar=SLOW))
        add_item(redis, 2, schema(BAD))
        for item_id in range(3, 13):
            add_item(redis, item_id, schema(SCHEMA))
        add_item(redis, 13, Sampling(max_tokens=5))
        found = wait_for(lambda: items(redis, 13))
    assert found[1].error_code == found[2].error_code == "invalid_request"
    assert "'not' is not supported (at #/properties/a/items)" in (found[2].error_message or "")
    for item_id in range(3, 13):
        (choice,) = found[item_id].choices
        if choice.reason == "stop":
            jsonschema.validate(json.loads(text_of(model, choice.token_ids)), SCHEMA)
    assert runner.grammars.counts.num_compiled == 1
    assert found[13].choices


def test_the_snapshot_counts_grammars(runner: TorchRunner, tmp_path: Path) -> None:
    async def ask(engine: RunningEngine) -> dict[str, Any]:
        client = await EngineClient.connect(engine.url)
        for _ in range(3):
            await collect(client, schema(SCHEMA))
        values = await client.stats()
        await client.close()
        return values

    with running_engine(tmp_path, runner) as engine:
        values = asyncio.run(ask(engine))
    assert (values["grammars_compiled"], values["grammars_failed"]) == (1, 0)
    assert values["grammars_cached"] >= 2
    assert values["masks"] > 0
    assert values["mask_s"] > 0
    assert values["grammar_compile_s"] > 0
