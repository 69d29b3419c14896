"""Requests that no engine can compute are 400 and name the field; bursts of others are served; nobody else notices."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.bros_batch.web.serving import MODEL_NAME, Web, serving, web_settings
from tests.engines import running_engine

CHAT: dict[str, Any] = {"model": MODEL_NAME, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
PATH = "/v1/chat/completions"
# Every prompt takes long enough that, of a burst, only the first few would be in time.
BUSY: dict[str, Any] = {
    "rejects_late": True, "simulated_token_s": 0.001, "max_num_batched_tokens": 64, "default_ttft_s": 0.02,
}  # fmt: skip


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("stop_token_ids", {"min_tokens": 1, "stop_token_ids": [151_645]}),
        ("logit_bias", {"logit_bias": {"191222": -100}}),
        ("logit_bias", {"logit_bias": {str(n): 1 for n in range(1025)}}),
        ("slo", {"slo": {"ttft_ms": 5e-324, "tpot_ms": 5e-324}}),
        ("slo", {"slo": {"ttft_ms": 100, "tpot_ms": 0.5}}),
        ("repetition_penalty", {"repetition_penalty": 1e-300}),
        ("min_tokens", {"min_tokens": 3}),
    ],
)
def test_what_the_engine_cannot_compute_is_400_and_names_the_field(
    web: Web, param: str, fields: dict[str, Any]
) -> None:
    with web.http() as http:
        answer = http.post(PATH, json={**CHAT, **fields})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["param"], error["code"]) == (param, "invalid_request")
        assert param in error["message"]
        assert http.post(PATH, json=CHAT).status_code == 200


def test_a_prompt_with_a_foreign_token_is_400(web: Web) -> None:
    with web.http() as http:
        answer = http.post("/v1/completions", json={"model": MODEL_NAME, "prompt": [5, 151_645]})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
        assert "151645 is outside the vocabulary" in answer.json()["error"]["message"]


def test_a_chat_beside_a_huge_request_goes_on(tmp_path: Path, text_model: Path) -> None:
    """The frame of the request would be longer than the engine reads, which once closed the only connection."""
    biases = ",".join(f'"{number}":1' for number in range(2_500_000))
    huge = json.dumps(CHAT)[:-1] + ', "logit_bias": {' + biases + "}}"
    with (
        running_engine(
            tmp_path, model=str(text_model), served_model_name=MODEL_NAME, simulated_step_s=0.005
        ) as engine,
        serving(web_settings(tmp_path / "web", text_model, engine_url=engine.url)) as web,
        web.http() as http,
    ):
        body = {**CHAT, "max_tokens": 400, "ignore_eos": True, "stream": True}
        with http.stream("POST", PATH, json=body) as stream:
            events = stream.iter_lines()
            next(events)
            headers = {"Content-Type": "application/json"}
            answer = http.post(PATH, content=huge, headers=headers)
            assert answer.status_code == 400
            assert list(events)[-2:] == ["data: [DONE]", ""]


async def statuses(web: Web, bodies: list[dict[str, Any]]) -> list[int]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=web.url, timeout=120, limits=limits) as http:
        answers = await asyncio.gather(*(http.post(PATH, json=body) for body in bodies))
        return [answer.status_code for answer in answers]


def busy_engine(directory: Path, model: Path, **options: Any) -> Any:
    return running_engine(directory, model=str(model), served_model_name=MODEL_NAME, **BUSY, **options)


def warm_up(web: Web) -> None:
    """The engine learns what a token costs."""
    with web.http() as http:
        for number in range(4):
            prompt = [3 + number] * 200
            assert (
                http.post("/v1/completions", json={"model": MODEL_NAME, "prompt": prompt}).status_code == 200
            )


@pytest.mark.parametrize("number", [16, 200])
def test_a_burst_of_chats_is_served(tmp_path: Path, text_model: Path, number: int) -> None:
    with (
        busy_engine(tmp_path, text_model) as engine,
        serving(web_settings(tmp_path / "web", text_model, engine_url=engine.url)) as web,
    ):
        warm_up(web)
        bodies = [{**CHAT, "messages": [{"role": "user", "content": f"Chat {i}"}]} for i in range(number)]
        assert asyncio.run(statuses(web, bodies)) == [200] * number


def test_a_completion_of_many_prompts_is_served(tmp_path: Path, text_model: Path) -> None:
    with (
        busy_engine(tmp_path, text_model) as engine,
        serving(web_settings(tmp_path / "web", text_model, engine_url=engine.url)) as web,
    ):
        warm_up(web)
        with web.http() as http:
            prompts = [[10 + number] * 20 for number in range(64)]
            body = {"model": MODEL_NAME, "prompt": prompts, "max_tokens": 2, "ignore_eos": True}
            answer = http.post("/v1/completions", json=body, timeout=120)
            assert answer.status_code == 200
            assert len(answer.json()["choices"]) == 64


def test_at_the_limit_of_open_chats_flex_is_the_way_out(tmp_path: Path, text_model: Path) -> None:
    slow: dict[str, Any] = {"simulated_step_s": 0.005, "max_waiting_rt": 1}
    with (
        running_engine(tmp_path, model=str(text_model), served_model_name=MODEL_NAME, **slow) as engine,
        serving(web_settings(tmp_path / "web", text_model, engine_url=engine.url)) as web,
        web.http() as http,
    ):
        endless = {**CHAT, "max_tokens": 1500, "ignore_eos": True, "stream": True}
        with http.stream("POST", PATH, json=endless) as stream:
            lines = stream.iter_lines()
            next(lines)
            rejected = http.post(PATH, json=CHAT)
            assert rejected.status_code == 429
            assert '"service_tier": "flex"' in rejected.json()["error"]["message"]
            assert int(rejected.headers["retry-after"]) >= 1
            assert http.post(PATH, json={**CHAT, "service_tier": "flex"}).status_code == 200
