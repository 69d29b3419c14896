"""The socket server and its client over a real socket, with the simulated runner."""

import asyncio
import stat
import struct
from pathlib import Path

import pytest

from engine.core.terms import TokenLogprobs
from engine.runner.base import DoneStep
from engine.runner.simulated import SimulatedCost, SimulatedRunner
from engine.wire.client import EngineClient
from engine.wire.engine_errors import EngineGone, EngineRejected
from engine.wire.framing import frame
from engine.wire.protocol import Cancel, Error, Finished, Hello, Submit, Tokens, decode_engine_message
from engine.wire.request_terms import Sampling, Slo
from tests.engines import running_engine
from tests.factories import runner_info
from tests.services import PATIENCE_S

GREEDY = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True)


async def collect(client, prompt, sampling=GREEDY, **options):
    token_ids = []
    async with client.submit(prompt, sampling, **options) as stream:
        async for message in stream:
            if isinstance(message, Tokens):
                token_ids += message.ids
            else:
                return token_ids, message
    raise AssertionError("the stream ended without Finished")


def endless_runner() -> SimulatedRunner:
    """A runner so slow that a request of many thousand tokens outlasts every test."""
    return SimulatedRunner(
        runner_info(num_blocks=4000, block_size=16, max_model_len=60_000, max_num_seqs=8),
        cost=SimulatedCost(step_s=0.001),
        wait=__import__("time").sleep,
    )


class CertainRunner(SimulatedRunner):
    """A runner that returns a different log-probability for each token."""

    def launch(self, plan):
        result = super().launch(plan).result()
        result.logprobs = {i: TokenLogprobs(-1.0 - token_id, ()) for i, token_id in enumerate(result.sampled)}
        return DoneStep(result)


async def wait_until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_many_requests_share_one_connection(tmp_path):
    with running_engine(tmp_path) as engine:
        client = await EngineClient.connect(engine.url)
        assert client.welcome.model == "sim"
        prompts = [list(range(3, 3 + n)) for n in range(1, 60)]
        answers = await asyncio.gather(*(collect(client, p) for p in prompts))
        for prompt, (token_ids, finished) in zip(prompts, answers, strict=True):
            assert token_ids == engine.runner.continuation(prompt, GREEDY)
            assert finished == Finished(
                finished.id, "length", len(prompt), 12, cached_tokens=finished.cached_tokens
            )
        stats = await client.stats()
        assert stats["lanes"]["rt"]["finished"] == {"length": 59}
        assert stats["lanes"]["rt"]["output_tokens"] == 59 * 12
        await client.close()


async def test_an_invalid_request_is_rejected_with_the_reason(tmp_path):
    with running_engine(tmp_path, max_model_len=64) as engine:
        client = await EngineClient.connect(engine.url)
        cases = [
            ([], "invalid_request", "prompt is empty"),
            (list(range(64)), "context_length_exceeded", "64 tokens"),
            ([5, 40_000], "invalid_request", "Token id 40000 is outside the vocabulary of 32000"),
        ]
        for prompt, code, words in cases:
            with pytest.raises(EngineRejected, match=words) as caught:
                await collect(client, prompt)
            assert caught.value.code == code
        assert len((await collect(client, [5]))[0]) == 12
        await client.close()


async def test_requests_above_the_limit_are_rejected_with_a_retry_time(tmp_path):
    with running_engine(tmp_path, endless_runner(), max_waiting_rt=2) as engine:
        client = await EngineClient.connect(engine.url)
        forever = Sampling(max_tokens=50_000, ignore_eos=True)
        open_streams = [client.submit([5], forever) for _ in range(2)]
        with pytest.raises(EngineRejected, match="2 chat requests are open") as caught:
            await collect(client, [5])
        assert caught.value.code == "overloaded"
        assert caught.value.retry_after_s == 1.0
        for stream in open_streams:
            stream.cancel()
        assert len((await collect(client, [5]))[0]) == 12
        await client.close()


async def test_chats_that_would_wait_too_long_are_rejected_with_a_retry_time(tmp_path):
    """A prompt takes 0.1 s, so the fifth of several at once takes five times as long as one alone."""
    with running_engine(
        tmp_path, rejects_late=True, simulated_token_s=0.001, max_num_batched_tokens=64
    ) as engine:
        client = await EngineClient.connect(engine.url)
        one = Sampling(max_tokens=1)
        slo = Slo(ttft_s=0.05, tpot_s=0.05)
        for first in range(
            3, 7
        ):  # the engine learns what a token costs; alone, a prompt of any length is admitted
            await collect(client, [first] * 300, one, slo=slo)

        async def ask(first):
            try:
                await collect(client, [first] * 100, one, slo=slo)
            except EngineRejected as rejection:
                return rejection
            return None

        answers = await asyncio.gather(*(ask(10 + i) for i in range(60)))
        rejected = [each for each in answers if each is not None]
        assert answers[0] is None
        assert 2 <= len(answers) - len(rejected) <= 20
        assert {each.code for each in rejected} == {"overloaded"}
        assert {each.retry_after_s for each in rejected} == {1.0}
        assert "try again in 1 s" in rejected[0].message
        assert (await client.stats())["rejected"]["overloaded"] == len(rejected)
        assert (await collect(client, [5] * 100, lane="be"))[0], "bulk is never rejected for being late"
        assert await ask(3) is None, "the queue is empty again"
        await client.close()


async def test_stats_include_memory_on_request(tmp_path):
    with running_engine(tmp_path, endless_runner()) as engine:
        client = await EngineClient.connect(engine.url)
        assert "memory" not in await client.stats()
        async with client.submit(list(range(3, 103)), Sampling(max_tokens=50_000, ignore_eos=True)) as stream:
            async for _ in stream:
                break
            memory = (await client.stats(with_memory=True))["memory"]
            assert memory["blocks_per_cell"] == 16
            assert memory["block_size"] == 16
            assert len(memory["left"]) == len(memory["right"]) == len(memory["cached"]) == 250
            assert sum(memory["left"]) >= 100
            assert sum(memory["right"]) == 0
        await client.close()


async def test_leaving_the_stream_or_losing_the_connection_cancels_the_request(tmp_path):
    with running_engine(tmp_path, endless_runner()) as engine:
        watcher = await EngineClient.connect(engine.url)

        async def all_gone():
            return (await watcher.stats())["lanes"]["rt"]["running"] == 0

        client = await EngineClient.connect(engine.url)
        forever = Sampling(max_tokens=50_000, ignore_eos=True)
        async with client.submit([5], forever) as stream:
            async for _ in stream:
                break
        await wait_until(all_gone)
        async with client.submit([6], forever) as stream:
            async for _ in stream:
                break
            await client.close()
            await wait_until(all_gone)
            with pytest.raises(EngineGone):
                async for _ in stream:
                    pass
        with pytest.raises(EngineGone, match="closed"):
            client.submit([5], GREEDY)
        await watcher.close()


async def raw(url: str, *frames: bytes) -> list[object]:
    """Send raw frames and return all messages until the engine closes the connection."""
    reader, writer = await asyncio.open_unix_connection(url.removeprefix("unix://"))
    writer.writelines(frames)
    said = []
    async with asyncio.timeout(PATIENCE_S):
        while prefix := await reader.read(4):
            body = await reader.readexactly(struct.unpack(">I", prefix)[0])
            said.append(decode_engine_message(body))
    writer.close()
    return said


async def test_malformed_frames_close_that_connection_only(tmp_path):
    with running_engine(tmp_path) as engine:
        good = await EngineClient.connect(engine.url)
        hello = frame(Hello())
        cases = [
            ((frame(Submit("x", [5], GREEDY)),), "hello_expected"),
            ((frame(Hello(version=99)),), "version_mismatch"),
            ((hello, b"\x00\x00\x00\x03abc"), "malformed_frame"),
            ((hello, b"\xff\xff\xff\xff"), "malformed_frame"),
            ((hello, hello), "unexpected_hello"),
        ]
        for frames, code in cases:
            said = await raw(engine.url, *frames)
            assert isinstance(said[-1], Error), frames
            assert said[-1].code == code
        assert len((await collect(good, [5]))[0]) == 12
        await good.close()


async def test_an_id_reused_after_a_cancel_gets_only_its_own_tokens(tmp_path):
    """Tokens of the cancelled request may still be in transit when the next one with the same id arrives."""
    runner = endless_runner()
    endless, short = Sampling(max_tokens=50_000, ignore_eos=True), GREEDY
    with running_engine(tmp_path, runner) as engine:
        reader, writer = await asyncio.open_unix_connection(engine.url.removeprefix("unix://"))
        writer.write(frame(Hello()))

        async def receive():
            prefix = await reader.readexactly(4)
            return decode_engine_message(await reader.readexactly(struct.unpack(">I", prefix)[0]))

        await receive()
        for i in range(20):
            writer.write(frame(Submit("same", [5, i + 3], endless)))
            assert isinstance(await receive(), Tokens)
            writer.writelines([frame(Cancel("same")), frame(Submit("then", [9, i + 3], short))])
            writer.writelines([frame(Cancel("then")), frame(Submit("then", [7, i + 3], short))])
            token_ids = []
            async with asyncio.timeout(PATIENCE_S):
                while not isinstance(message := await receive(), Finished):
                    token_ids += message.ids if message.id == "then" else []
            assert token_ids == runner.continuation([7, i + 3], short)
        writer.close()


async def test_tcp_needs_the_token(tmp_path):
    with pytest.raises(OSError, match="needs a token"), running_engine(tmp_path, listen="tcp://127.0.0.1:0"):
        pass
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"tcp://127.0.0.1:{port}"
    with running_engine(tmp_path, listen=url, token="secret"):
        for token in (None, "wrong"):
            with pytest.raises(EngineGone, match="token is missing or wrong"):
                await EngineClient.connect(url, token)
        client = await EngineClient.connect(url, "secret")
        assert len((await collect(client, [5]))[0]) == 12
        await client.close()


async def test_the_socket_is_private_and_serves_one_engine(tmp_path):
    path = Path(tmp_path / "engine.sock")
    with running_engine(tmp_path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(OSError, match="another engine listens"), running_engine(tmp_path):
            pass
    path.unlink(missing_ok=True)
    path.write_text("precious")
    with pytest.raises(OSError, match="in the way"), running_engine(tmp_path):
        pass
    assert path.read_text() == "precious"


async def test_a_dead_engines_socket_file_is_replaced(tmp_path):
    import socket

    path = tmp_path / "engine.sock"
    left_behind = socket.socket(socket.AF_UNIX)
    left_behind.bind(str(path))
    left_behind.close()
    with running_engine(tmp_path) as engine:
        client = await EngineClient.connect(engine.url)
        await client.close()


async def test_drain_finishes_open_requests_and_rejects_new_ones(tmp_path):
    with running_engine(tmp_path, endless_runner(), drain_grace_s=30.0) as engine:
        client = await EngineClient.connect(engine.url)
        stream = client.submit([5], Sampling(max_tokens=300, ignore_eos=True))
        messages = aiter(stream)
        await anext(messages)
        engine.drain()
        with pytest.raises(EngineRejected, match="shutting down"):
            while True:  # the engine may answer a few before it starts to drain
                await collect(client, [6], Sampling(max_tokens=1))
        rest = [m async for m in messages]
        assert isinstance(rest[-1], Finished)
        assert rest[-1].reason == "length"
        await client.closed.wait()
    with pytest.raises(EngineGone, match="no engine answers"):
        await EngineClient.connect(engine.url)


async def test_the_socket_accepts_be_requests(tmp_path):
    with running_engine(tmp_path) as engine:
        client = await EngineClient.connect(engine.url)
        token_ids, _ = await collect(client, [5, 6], lane="be", priority=3)
        assert token_ids == engine.runner.continuation([5, 6], GREEDY)
        assert (await client.stats())["lanes"]["be"]["finished"] == {"length": 1}
        await client.close()


@pytest.mark.parametrize(("interval_s", "num_messages"), [(0.0, 12), (1e9, 2)])
async def test_tokens_of_bulk_are_sent_together(tmp_path, monkeypatch, interval_s, num_messages):
    """The first token is sent at once, the others together at each interval, and the rest with the end."""
    monkeypatch.setattr("engine.lanes.outbox.BE_SEND_INTERVAL_S", interval_s)
    with running_engine(tmp_path, CertainRunner(runner_info())) as engine:
        client = await EngineClient.connect(engine.url)
        for lane, expected in (("be", num_messages), ("rt", 12)):
            async with client.submit([5, 6], GREEDY, lane=lane) as stream:
                *pieces, end = [message async for message in stream]
            assert isinstance(end, Finished)
            assert len(pieces) == expected
            token_ids = [token_id for piece in pieces for token_id in piece.ids]
            assert token_ids == engine.runner.continuation([5, 6], GREEDY)
            logprobs = [each.logprob for piece in pieces for each in piece.logprobs]
            assert logprobs == [-1.0 - token_id for token_id in token_ids]
        await client.close()


async def test_held_bulk_tokens_are_sent_after_steps_of_other_requests(tmp_path, monkeypatch):
    """Bulk that gets no further tokens still gets those it has: every later step sends what is held long enough."""
    monkeypatch.setattr("engine.lanes.outbox.BE_SEND_INTERVAL_S", 1e9)
    with running_engine(tmp_path, endless_runner()) as engine:
        bulk, chat = [await EngineClient.connect(engine.url) for _ in range(2)]
        endless = Sampling(max_tokens=50_000, temperature=0.0, ignore_eos=True)
        async with bulk.submit([5, 6], endless, lane="be") as stream:
            pieces = aiter(stream)
            await anext(pieces)
            token_ids, _ = await collect(chat, [7], Sampling(max_tokens=2, ignore_eos=True))
            assert len(token_ids) == 2
            monkeypatch.setattr("engine.lanes.outbox.BE_SEND_INTERVAL_S", 0.0)
            assert len((await anext(pieces)).ids) > 1
        await bulk.close()
        await chat.close()
