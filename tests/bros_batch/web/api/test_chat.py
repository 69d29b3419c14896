"""Chat and plain completions with the unmodified `openai` client, and an engine behind a real socket."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from bros_batch.text.message_form import finished_choice
from engine.core.terms import SamplingParams
from engine.runner.simulated import SimulatedRunner
from engine.wire.item_messages import Choice
from engine.wire.request_terms import Sampling
from tests.bros_batch.web.serving import MODEL_NAME, Web, serving, web_settings
from tests.engines import RunningEngine, running_engine, stats_of
from tests.services import processes, wait_for

HELLO: Any = [{"role": "user", "content": "Hello"}]


def expected(web: Web, engine: RunningEngine, prompt: list[int], max_tokens: int) -> str:
    """Return the output of the simulated model, computed without an engine."""
    assert isinstance(engine.runner, SimulatedRunner)
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    ids = engine.runner.continuation(prompt, params)
    sampling = Sampling(max_tokens=max_tokens, ignore_eos=True)
    return finished_choice(web.tokenizer, 0, Choice(ids, "length"), sampling).text


def stream_text(stream: Any) -> tuple[str, list[str | None]]:
    content, reasons = "", []
    for chunk in stream:
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reasons.append(choice.finish_reason)
    return content, [reason for reason in reasons if reason]


def test_the_answer_is_the_output_of_the_model(web: Web, engine: RunningEngine, client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL_NAME, messages=HELLO, max_tokens=24, extra_body={"ignore_eos": True}
    )
    prompt = web.tokenizer.encode_chat(HELLO)
    assert answer.choices[0].message.content == expected(web, engine, prompt, 24)
    assert (answer.choices[0].finish_reason, answer.choices[0].message.role) == ("length", "assistant")
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), 24)
    assert answer.usage.total_tokens == len(prompt) + 24
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens is not None


def test_a_streamed_answer_equals_the_whole_one(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL_NAME, "messages": HELLO, "max_tokens": 40}
    asked["extra_body"] = {"ignore_eos": True}
    whole = client.chat.completions.create(**asked).choices[0]
    content, reasons = stream_text(client.chat.completions.create(**asked, stream=True))
    assert content == whole.message.content
    assert reasons == [whole.finish_reason]


def test_the_events_of_a_stream(web: Web) -> None:
    body = {"model": MODEL_NAME, "messages": HELLO, "max_tokens": 4, "ignore_eos": True, "stream": True}
    with web.http() as http:
        answer = http.post("/v1/chat/completions", json={**body, "stream_options": {"include_usage": True}})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.text.endswith("data: [DONE]\n\n")
    events = answer.text.removesuffix("\n\n").split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + [
        "length"
    ]
    assert chunks[-2]["choices"][0]["delta"] == {}
    assert chunks[-1]["choices"] == []
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["usage"]["completion_tokens"] == 4


def test_the_answer_ends_before_a_stop_string(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL_NAME, "messages": HELLO, "max_tokens": 60}
    asked["extra_body"] = {"ignore_eos": True}
    whole = client.chat.completions.create(**asked).choices[0].message.content or ""
    stop = whole[20:24]
    edge = whole.index(stop)
    answer = client.chat.completions.create(**asked, stop=stop)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (whole[:edge], "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens < 60
    content, reasons = stream_text(
        client.chat.completions.create(**asked, stop=["absent", stop], stream=True)
    )
    assert (content, reasons) == (whole[:edge], ["stop"])


def test_a_stream_without_text_has_a_chunk_besides_the_one_with_the_role(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL_NAME, "messages": HELLO, "max_tokens": 60, "stream": True}
    asked["extra_body"] = {"ignore_eos": True}
    whole, _ = stream_text(client.chat.completions.create(**asked))
    chunks = list(client.chat.completions.create(**asked, stop=whole[0]))
    deltas = [chunk.choices[0].delta.model_dump(exclude_unset=True) for chunk in chunks]
    assert deltas == [{"role": "assistant", "content": "", "refusal": None}, {"content": ""}, {}]
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices(client: OpenAI, stream: bool) -> None:
    asked: dict[str, Any] = {"model": MODEL_NAME, "messages": HELLO, "max_tokens": 12, "n": 3}
    asked["extra_body"] = {"ignore_eos": True}
    if not stream:
        answer = client.chat.completions.create(**asked, seed=7)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 36
        # The simulated model ignores seeds: every choice equals that of a request with one choice.
        assert len({choice.message.content for choice in answer.choices}) == 1
        return
    contents = {0: "", 1: "", 2: ""}
    ended = set()
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            contents[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                ended.add(choice.index)
    assert ended == {0, 1, 2}
    assert len(set(contents.values())) == 1
    assert contents[0]


def test_plain_completions(web: Web, engine: RunningEngine, client: OpenAI) -> None:
    extra = {"ignore_eos": True}
    one = client.completions.create(model=MODEL_NAME, prompt="The dog", max_tokens=9, extra_body=extra)
    assert one.choices[0].text == expected(web, engine, web.tokenizer.encode_prompt("The dog"), 9)
    assert one.object == "text_completion"
    many = client.completions.create(
        model=MODEL_NAME, prompt=["The dog", "The fox"], n=2, max_tokens=9, extra_body=extra
    )
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert many.choices[0].text == many.choices[1].text == one.choices[0].text
    assert many.choices[2].text == expected(web, engine, web.tokenizer.encode_prompt("The fox"), 9)
    ids = client.completions.create(model=MODEL_NAME, prompt=[[5, 6, 7]], max_tokens=9, extra_body=extra)
    assert ids.choices[0].text == expected(web, engine, [5, 6, 7], 9)
    stream = client.completions.create(
        model=MODEL_NAME, prompt="The dog", max_tokens=9, stream=True, extra_body=extra
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == one.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_request_that_can_wait_runs_in_the_be_lane(engine: RunningEngine, client: OpenAI) -> None:
    def finished(lane: str) -> int:
        return int(sum(stats_of(engine)["lanes"][lane]["finished"].values()))

    before = finished("be"), finished("rt")
    client.chat.completions.create(model=MODEL_NAME, messages=HELLO, max_tokens=2, service_tier="flex")
    client.chat.completions.create(model=MODEL_NAME, messages=HELLO, max_tokens=2, extra_body={"priority": 3})
    client.chat.completions.create(
        model=MODEL_NAME, messages=HELLO, max_tokens=2, extra_body={"slo": {"ttft_ms": 100, "tpot_ms": 20}}
    )
    client.chat.completions.create(
        model=MODEL_NAME, messages=HELLO, max_tokens=2, extra_body={"slo": {"slowdown": 0.05}}
    )
    assert (finished("be"), finished("rt")) == (before[0] + 2, before[1] + 2)


@pytest.mark.parametrize(
    ("call", "kind", "param", "code"),
    [
        (
            lambda c: c.chat.completions.create(model="other", messages=HELLO),
            openai.NotFoundError, "model", "model_not_found",
        ),
        (
            lambda c: c.chat.completions.create(model=MODEL_NAME, messages=HELLO, temperature=9),
            openai.BadRequestError, "temperature", "invalid_request",
        ),
        (
            lambda c: c.chat.completions.create(model=MODEL_NAME, messages=HELLO, max_tokens=5000),
            openai.BadRequestError, "messages", "context_length_exceeded",
        ),
        (
            lambda c: c.chat.completions.create(model=MODEL_NAME, messages=HELLO, max_tokens=5000, stream=True),
            openai.BadRequestError, "messages", "context_length_exceeded",
        ),
        (
            lambda c: c.completions.create(model=MODEL_NAME, prompt=[399_999]),
            openai.BadRequestError, "prompt", "invalid_request",
        ),
        (
            lambda c: c.completions.create(model=MODEL_NAME, prompt=["x"] * 100, n=3),
            openai.BadRequestError, "n", "invalid_request",
        ),
    ],
)  # fmt: skip
def test_errors_have_the_types_of_the_openai_client(
    client: OpenAI, call: Callable[[OpenAI], object], kind: type[openai.APIStatusError], param: str, code: str
) -> None:
    with pytest.raises(kind) as caught:
        call(client)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.request_id


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_that_would_wait_too_long_is_429_with_retry_after(
    tmp_path: Path, text_model: Path, stream: bool
) -> None:
    """Two dozen prompts that take 0.2 s each arrive at once, with a TTFT of 0.05 s."""
    slow: dict[str, Any] = {"simulated_token_s": 0.001, "rejects_late": True}
    with (
        running_engine(tmp_path, model=str(text_model), served_model_name=MODEL_NAME, **slow) as engine,
        serving(web_settings(tmp_path, text_model, engine_url=engine.url)) as web,
        web.openai() as client,
    ):

        def ask(first: int) -> openai.RateLimitError | None:
            prompt = [first, *[5] * 200]
            try:
                answer: Any = client.completions.create(
                    model=MODEL_NAME,
                    prompt=prompt,
                    max_tokens=1,
                    stream=stream,
                    extra_body={"ignore_eos": True, "slo": {"ttft_ms": 50, "tpot_ms": 50}},
                )
                if stream:
                    assert list(answer)
            except openai.RateLimitError as error:
                return error
            return None

        assert [ask(first) for first in range(3, 7)] == [None] * 4
        with ThreadPoolExecutor(24) as threads:
            rejected = [error for error in threads.map(ask, range(10, 34)) if error is not None]
        assert 0 < len(rejected) < 24
        error = rejected[0]
        assert error.type == "rate_limit_error"
        assert error.code == "overloaded"
        assert error.param is None
        assert 1 <= int(error.response.headers["retry-after"]) <= 10
        assert "try again in" in error.message
        assert ask(3) is None, "it is accepted once the others are done"


def test_an_overloaded_engine_is_429_with_retry_after(tmp_path: Path, text_model: Path) -> None:
    slow: dict[str, Any] = {"simulated_step_s": 0.02, "max_waiting_rt": 1}
    with (
        running_engine(tmp_path, model=str(text_model), served_model_name=MODEL_NAME, **slow) as engine,
        serving(web_settings(tmp_path / "web", text_model, engine_url=engine.url)) as web,
        web.openai() as client,
    ):
        extra: dict[str, Any] = {"ignore_eos": True}
        with client.chat.completions.create(
            model=MODEL_NAME, messages=HELLO, max_tokens=1500, stream=True, extra_body=extra
        ) as stream:
            next(iter(stream))
            with pytest.raises(openai.RateLimitError) as caught:
                client.chat.completions.create(model=MODEL_NAME, messages=HELLO)
            assert int(caught.value.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnect_cancels_the_request(tmp_path: Path, text_model: Path, stream: bool) -> None:
    with (
        running_engine(
            tmp_path, model=str(text_model), served_model_name=MODEL_NAME, simulated_step_s=0.01
        ) as engine,
        serving(web_settings(tmp_path / "web", text_model, engine_url=engine.url)) as web,
    ):
        body = {
            "model": MODEL_NAME, "messages": HELLO, "max_tokens": 1900, "ignore_eos": True, "n": 2, "stream": stream,
        }  # fmt: skip

        def running() -> int:
            return int(stats_of(engine)["lanes"]["rt"]["running"])

        with httpx.Client(base_url=web.url, timeout=1.0) as http:
            if stream:
                with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                    chunks = answer.iter_bytes()
                    next(chunks)
                    assert running() == 2
            else:
                with pytest.raises(httpx.ReadTimeout):
                    http.post("/v1/chat/completions", json=body)
        wait_for(lambda: running() == 0, "the end of the request")
        assert stats_of(engine)["steps"] > 1
        assert stats_of(engine)["lanes"]["rt"]["finished"].get("length", 0) == 0


def test_without_an_engine(tmp_path: Path, text_model: Path) -> None:
    """Requests get 503 while the engine is away, and succeed once it is back, without a restart of the server."""
    url = f"unix://{tmp_path / 'engine.sock'}"
    with serving(web_settings(tmp_path / "web", text_model, engine_url=url)) as web, web.openai() as client:
        for _ in range(2):
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(model=MODEL_NAME, messages=HELLO)
            assert caught.value.status_code == 503
            assert "engine is not reachable" in str(caught.value)
            assert "retry-after" in caught.value.response.headers
            with running_engine(tmp_path, model=str(text_model), served_model_name=MODEL_NAME):
                answer = client.chat.completions.create(model=MODEL_NAME, messages=HELLO, max_tokens=3)
                assert answer.choices[0].finish_reason


def test_a_stream_ends_with_an_error_when_the_engine_dies(tmp_path: Path, text_model: Path) -> None:
    with processes() as group:
        engine = group.engine(text_model, MODEL_NAME, "redis://127.0.0.1:1/0")
        url = f"unix://{group.directory / 'engine-0.sock'}"
        with (
            serving(web_settings(tmp_path / "web", text_model, engine_url=url)) as web,
            web.openai() as client,
        ):
            wait_for(
                lambda: httpx.get(f"{web.url}/v1/models").json()["data"][0]["max_model_len"], "the engine"
            )
            stream = client.completions.create(
                model=MODEL_NAME,
                prompt="x",
                max_tokens=2000,
                stream=True,
                n=64,
                extra_body={"ignore_eos": True},
            )
            next(iter(stream))
            engine.kill()
            with pytest.raises(openai.APIError, match="engine is not reachable"):
                for _ in stream:
                    pass
