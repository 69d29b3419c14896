"""Requests that are wrong, and floods of right ones: they concern the client that sent them, and nobody else."""

from __future__ import annotations

import asyncio
import math
import struct
from typing import Any

import msgspec
import pytest

from engine.wire.client import EngineClient
from engine.wire.engine_errors import EngineGone, EngineRejected
from engine.wire.framing import LENGTH_PREFIX, MAX_FRAME_BYTES, frame
from engine.wire.protocol import (
    PROTOCOL_VERSION,
    Cancel,
    Error,
    Finished,
    Rejected,
    Stats,
    StatsQuery,
    Submit,
    Tokens,
    Welcome,
)
from engine.wire.request_terms import MAX_LOGIT_BIASES, MAX_STOP_STRINGS, Sampling, Slo
from tests.engine.lanes.raw_client import RawClient
from tests.engines import running_engine

GREEDY = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True)
VOCAB_SIZE = 32_000  # of the simulated model
VALID = {"max_tokens": 12, "temperature": 0.0, "ignore_eos": True}


async def collect(
    client: EngineClient, prompt: list[int], sampling: Sampling = GREEDY, **options: Any
) -> list[int]:
    token_ids: list[int] = []
    async with client.submit(prompt, sampling, **options) as stream:
        async for message in stream:
            token_ids += message.ids if isinstance(message, Tokens) else []
    return token_ids


WRONG_SUBMITS: list[tuple[str, dict[str, Any]]] = [
    ("max_tokens", {"sampling": {}}),
    ("max_tokens", {"sampling": {"max_tokens": "many"}}),
    ("max_tokens", {"sampling": {"max_tokens": 0}}),
    ("max_tokens", {"sampling": {"max_tokens": 2**64 - 1}}),
    ("min_tokens", {"sampling": {"max_tokens": 2, "min_tokens": 3}}),
    ("temperature", {"sampling": {**VALID, "temperature": math.nan}}),
    ("temperature", {"sampling": {**VALID, "temperature": 1e308}}),
    ("repetition_penalty", {"sampling": {**VALID, "repetition_penalty": 5e-324}}),
    ("stop_token_ids", {"sampling": {**VALID, "min_tokens": 1, "stop_token_ids": [151_645]}}),
    ("stop_token_ids", {"sampling": {**VALID, "stop_token_ids": [-1]}}),
    ("stop", {"sampling": {**VALID, "stop": ["a"] * (MAX_STOP_STRINGS + 1)}}),
    ("stop", {"sampling": {**VALID, "stop": ["a" * 100_000]}}),
    ("logit_bias", {"sampling": {**VALID, "logit_bias": [[VOCAB_SIZE, 1.0]]}}),
    ("logit_bias", {"sampling": {**VALID, "logit_bias": [[1, math.inf]]}}),
    ("logit_bias", {"sampling": {**VALID, "logit_bias": [[1, 1.0]] * (MAX_LOGIT_BIASES + 1)}}),
    ("slo", {"slo": {"ttft_s": 5e-324, "tpot_s": 0.1}}),
    ("slo", {"slo": {"ttft_s": 0.1, "tpot_s": math.nan}}),
    ("slo", {"slo": {"ttft_s": 0.1}}),
    ("slo", {"slo": {"slowdown": math.nan}}),
    ("slo", {"slo": {"slowdown": 0.0}}),
    ("slo", {"slo": {"slowdown": 0.1, "tpot_s": 0.1}}),
    ("priority", {"priority": 2**63}),
    ("deadline_unix_s", {"deadline_unix_s": math.nan}),
    ("deadline_unix_s", {"deadline_unix_s": math.inf}),
    ("deadline_unix_s", {"deadline_unix_s": 1e308}),
    ("token_ids", {"token_ids": [5, VOCAB_SIZE]}),
    ("token_ids", {"token_ids": [-2]}),
    ("token_ids", {"token_ids": ["five"]}),
    ("lane", {"lane": "fast"}),
]


async def test_a_wrong_request_is_rejected_by_its_id_and_the_connection_stays(tmp_path):
    with running_engine(tmp_path) as engine:
        client = await RawClient.connect(engine.url)
        for number, (param, fields) in enumerate(WRONG_SUBMITS):
            client.send_map(
                **{"type": "submit", "id": f"w{number}", "token_ids": [5], "sampling": VALID, **fields}
            )
            answer = await client.receive()
            assert isinstance(answer, Rejected), fields
            assert (answer.id, answer.code) == (f"w{number}", "invalid_request")
            assert answer.param == param
        client.send_map(type="submit", id="good", token_ids=[5], sampling=VALID)
        assert await client.output_of("good") == engine.runner.continuation([5], GREEDY)
        client.send(frame(StatsQuery()))
        stats = await client.receive()
        assert stats.values["rejected"]["invalid_request"] == len(WRONG_SUBMITS)
        await client.close()


async def test_only_a_stream_that_cannot_be_followed_is_closed(tmp_path):
    def framed(body: bytes) -> bytes:
        return LENGTH_PREFIX.pack(len(body)) + body

    deep = b"\x83\xa4type\xa6submit\xa2id\xa1d\xa1x" + b"\x91" * 100_000 + b"\xc0"
    with running_engine(tmp_path) as engine:
        for broken in (
            framed(b"\xc1"),
            framed(deep),
            framed(b"\xdd\xff\xff\xff\xff"),
            framed(msgspec.msgpack.encode({"type": "submit", "id": "x" * 1000, "token_ids": [5]})),
            framed(msgspec.msgpack.encode({"type": "surprise", "id": "x"})),
            LENGTH_PREFIX.pack(MAX_FRAME_BYTES + 1),
        ):
            client = await RawClient.connect(engine.url)
            client.send(broken)
            answer = await client.receive()
            assert isinstance(answer, Error), broken[:40]
            assert answer.code == "malformed_frame"
            assert await client.receive() is None
            await client.close()
        client = await RawClient.connect(engine.url)
        invalid_text = b"\x83\xa4type\xa6submit\xa2id\xa1u\xa5model\xa1\xff"
        client.send(framed(invalid_text))
        assert (await client.receive()).id == "u"
        await client.close()


async def test_before_hello_little_is_read_and_not_for_long(tmp_path, monkeypatch):
    with running_engine(tmp_path) as engine:
        client = await RawClient.connect(engine.url, greets=False)
        client.send(LENGTH_PREFIX.pack(5000))
        answer = await client.receive()
        assert "5000 bytes exceeds" in answer.message
        assert await client.receive() is None
        await client.close()
        monkeypatch.setattr("engine.lanes.socket_connection.HELLO_TIMEOUT_S", 0.01)
        silent = await RawClient.connect(engine.url, greets=False)
        assert (await silent.receive()).code == "hello_expected"
        assert await silent.receive() is None
        await silent.close()


async def test_tokens_of_any_text_are_compared(tmp_path):
    with running_engine(tmp_path, token="sécrét") as engine:
        for wrong in (None, "secret", "\U0001f600"):
            with pytest.raises(EngineGone, match="token is missing or wrong"):
                await EngineClient.connect(engine.url, wrong)
        with pytest.raises(EngineGone, match="not valid text"):
            await EngineClient.connect(engine.url, "\ud800")
        client = await EngineClient.connect(engine.url, "sécrét")
        assert await collect(client, [5]) == engine.runner.continuation([5], GREEDY)
        await client.close()


async def test_a_request_that_cannot_be_sent_fails_alone(tmp_path):
    with running_engine(tmp_path) as engine:
        client = await EngineClient.connect(engine.url)
        unsendable: list[tuple[list[int], Sampling]] = [
            ([70_000] * (MAX_FRAME_BYTES // 4), GREEDY),
            ([5], Sampling(max_tokens=2**64)),
            ([5], Sampling(max_tokens=1, stop=("\ud800",))),
            ([2**64], GREEDY),
        ]
        async with client.submit([9], GREEDY) as beside:
            for prompt, sampling in unsendable:
                with pytest.raises(EngineRejected, match="cannot be sent") as caught:
                    client.submit(prompt, sampling)
                assert caught.value.code == "invalid_request"
            messages = [message async for message in beside]
        assert isinstance(messages[-1], Finished)
        assert await collect(client, [5]) == engine.runner.continuation([5], GREEDY)
        await client.close()


async def test_a_message_of_the_engine_that_cannot_be_read_ends_its_request_only(tmp_path):
    """The engine of another release, say, reports a reason that this client does not know."""
    unreadable = msgspec.msgpack.encode({"type": "finished", "id": "0", "reason": "boredom"})

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(3):  # hello and two requests
            await reader.readexactly(struct.unpack(">I", await reader.readexactly(4))[0])
        writer.write(
            frame(
                Welcome(version=PROTOCOL_VERSION, engine_id="e", model="m", max_model_len=10, vocab_size=10)
            )
        )
        writer.write(LENGTH_PREFIX.pack(len(unreadable)) + unreadable)
        writer.write(frame(Tokens("1", [7])))
        writer.write(frame(Finished("1", "length", prompt_tokens=1, output_tokens=1)))
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "engine.sock")
    async with server:
        connecting = asyncio.create_task(EngineClient.connect(f"unix://{tmp_path / 'engine.sock'}"))
        client = EngineClient(None)
        connecting.cancel()
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: client, str(tmp_path / "engine.sock"))
        first, second = client.submit([5], GREEDY), client.submit([6], GREEDY)
        [end] = [message async for message in first]
        assert isinstance(end, Finished)
        assert end.reason == "error"
        assert "cannot be read" in (end.message or "")
        assert [type(message) for message in [message async for message in second]] == [Tokens, Finished]
        await client.close()


async def test_queries_of_statistics_are_answered_together(tmp_path):
    """A map of the memory is costly, and 20,000 queries for one took the main loop 20 s."""
    num_queries = 20_000
    with running_engine(tmp_path, simulated_step_s=0.001) as engine:
        flood = await RawClient.connect(engine.url)
        chat = await EngineClient.connect(engine.url)
        flood.send(frame(StatsQuery(with_memory=True)) * num_queries)
        assert await collect(chat, [5]) == engine.runner.continuation([5], GREEDY)
        num_answered, answers = 0, list[Stats]()
        while num_answered < num_queries:
            answers.append(await flood.receive())
            num_answered += answers[-1].num_queries
        assert num_answered == num_queries
        assert len(answers) < num_queries / 100
        assert all("memory" in answer.values for answer in answers)
        with_memory, without = await asyncio.gather(chat.stats(with_memory=True), chat.stats())
        assert "memory" in with_memory
        assert without["lanes"]["rt"]["finished"] == {"length": 1}
        await flood.close()
        await chat.close()


@pytest.mark.parametrize("lane", ["rt", "be"])
async def test_a_flood_of_requests_and_cancellations_leaves_nothing_behind(tmp_path, lane):
    with running_engine(tmp_path, simulated_step_s=0.001) as engine:
        flood = await RawClient.connect(engine.url)
        chat = await EngineClient.connect(engine.url)
        pairs = [
            frame(Submit(f"{i}", [5, i], GREEDY, lane=lane)) + frame(Cancel(f"{i}")) for i in range(3000)
        ]
        flood.send(*pairs, frame(Cancel("unknown")) * 10_000, frame(StatsQuery()))
        assert await collect(chat, [6]) == engine.runner.continuation([6], GREEDY)
        while not isinstance(message := await flood.receive(), Stats):
            assert isinstance(message, Tokens | Finished | Rejected)
        stats = await chat.stats()
        assert stats["lanes"][lane]["running"] == stats["lanes"][lane]["waiting"] == 0
        assert sum(stats["lanes"][lane]["finished"].values()) + stats["rejected"]["overloaded"] == 3000 + (
            lane == "rt"
        )
        await flood.close()
        await chat.close()


async def test_a_connection_has_a_limit_of_open_bulk_requests_which_keeps_no_chat_out(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.lanes.client_requests.MAX_OPEN_BE_REQUESTS", 3)
    with running_engine(tmp_path, simulated_step_s=0.01) as engine:
        client, other = [await EngineClient.connect(engine.url) for _ in range(2)]
        endless = Sampling(max_tokens=8000, ignore_eos=True)
        streams = [client.submit([5], endless, lane="be") for _ in range(3)]
        with pytest.raises(EngineRejected, match="3 open bulk requests") as caught:
            await collect(client, [5], lane="be")
        assert (caught.value.code, caught.value.retry_after_s) == ("overloaded", 1.0)
        assert len(await collect(other, [5], lane="be")) == 12
        assert len(await collect(client, [5])) == 12
        for stream in streams:
            stream.cancel()
        assert len(await collect(client, [5], lane="be")) == 12
        await client.close()
        await other.close()


@pytest.mark.parametrize(("lane", "other"), [("rt", "be"), ("be", "rt")])
async def test_open_requests_have_a_limit_of_tokens_per_lane(tmp_path, monkeypatch, lane, other):
    monkeypatch.setattr("engine.lanes.admission.MAX_OPEN_TOKENS", 100)
    with running_engine(tmp_path, simulated_step_s=0.01) as engine:
        client = await EngineClient.connect(engine.url)
        endless = Sampling(max_tokens=4000, ignore_eos=True)
        alone = client.submit([5] * 300, endless, lane=lane)
        with pytest.raises(EngineRejected, match="300 tokens, and more would be too many") as caught:
            await collect(client, [5], lane=lane)
        assert caught.value.code == "overloaded"
        assert len(await collect(client, [5], lane=other)) == 12
        alone.cancel()
        assert len(await collect(client, [5], lane=lane)) == 12
        await client.close()


async def test_only_chats_that_name_an_slo_are_rejected_for_being_late(tmp_path):
    """A prompt takes 0.1 s, so the last of 30 waits for seconds; the default TTFT is 0.5 s."""
    slow: dict[str, Any] = {"rejects_late": True, "simulated_token_s": 0.001, "max_num_batched_tokens": 64}
    one = Sampling(max_tokens=1)
    with running_engine(tmp_path, **slow) as engine:
        client = await EngineClient.connect(engine.url)
        for first in range(3, 7):  # the engine learns what a token costs
            await collect(client, [first] * 300, one)
        *answers, rejected = await asyncio.gather(
            *(collect(client, [10 + i] * 100, one) for i in range(30)),
            collect(client, [9] * 100, one, slo=Slo(ttft_s=0.05, tpot_s=0.05)),
            return_exceptions=True,
        )
        assert isinstance(rejected, EngineRejected)
        assert rejected.code == "overloaded"
        assert "than it can answer in time; try again in" in rejected.message
        assert rejected.retry_after_s is not None
        assert 1 <= rejected.retry_after_s <= 60
        assert [len(answer) for answer in answers if isinstance(answer, list)] == [1] * 30
        await client.close()


async def test_with_a_factor_all_chats_are_rejected_for_being_late(tmp_path):
    slow: dict[str, Any] = {"rejects_late": True, "simulated_token_s": 0.001, "max_num_batched_tokens": 64}
    one = Sampling(max_tokens=1)
    with running_engine(tmp_path, max_ttft_factor=2.0, **slow) as engine:
        client = await EngineClient.connect(engine.url)
        for first in range(3, 7):
            await collect(client, [first] * 300, one)
        answers = await asyncio.gather(
            *(collect(client, [10 + i] * 100, one) for i in range(60)), return_exceptions=True
        )
        rejected = [answer for answer in answers if isinstance(answer, EngineRejected)]
        assert 0 < len(rejected) < 60
        assert {each.code for each in rejected} == {"overloaded"}
        await client.close()
