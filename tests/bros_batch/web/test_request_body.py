"""JSON bodies: their type, their size, their number of values, and their memory."""

from __future__ import annotations

import asyncio
import json
import resource

import httpx
import pytest

from bros_batch.web.request_body import LARGE_BODIES_BYTES
from tests.bros_batch.web.serving import MODEL_NAME, Web

JSON_ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/batches", "/chat")


def objects(count: int) -> bytes:
    return b"{" + b",".join(b'"k%d":0' % number for number in range(count)) + b"}"


HOSTILE = {
    "half a million numbers as messages": b'{"model":"m","messages":[' + b",".join([b"0"] * 490_000) + b"]}",
    "half a million numbers as the prompt": b'{"model":"m","prompt":[' + b",".join([b"-1"] * 490_000) + b"]}",
    "half a million stop tokens": b'{"model":"m","prompt":"x","stop_token_ids":['
    + b",".join([b"-1"] * 490_000)
    + b"]}",
    "empty lists": b'{"model":"m","messages":[' + b",".join([b"[]"] * 300_000) + b"]}",
    "unknown keys": objects(200_000),
    "unknown keys of a message": b'{"model":"m","messages":[' + objects(19_000) + b"]}",
    "a large logit_bias": b'{"model":"m","messages":[],"logit_bias":' + objects(200_000) + b"}",
    "metadata": b'{"input_file_id":"f","endpoint":"/v1/completions","metadata":' + objects(19_000) + b"}",
    "deep lists": b'{"model":"m","messages":' + b"[" * 19_000 + b"]" * 19_000 + b"}",
    "deep objects": b'{"model":"m","metadata":' + b'{"a":' * 9_000 + b"1" + b"}" * 9_000 + b"}",
    "a giant number": b'{"model":"m","messages":[],"max_tokens":' + b"9" * 1_000_000 + b"}",
    "not a number": b'{"model":"m","messages":[],"temperature":NaN,"metadata":{"a":NaN}}',
    "half a surrogate": b'{"model":"\\ud800","messages":[{"role":"user","content":"\\ud800"}]}',
    "not UTF-8": b'{"model":"m","messages":[{"role":"user","content":"\xff\xfe"}]}',
    "duplicate keys": b'{"model":"m","model":1,"messages":[],"messages":0}',
}


@pytest.mark.parametrize("path", JSON_ROUTES)
@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_body_is_rejected_at_little_cost(web: Web, path: str, body: bytes) -> None:
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with web.http() as http:
        answer = http.post(path, content=body)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert len(answer.content) < 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 120_000


@pytest.mark.parametrize("path", JSON_ROUTES)
def test_a_body_of_another_type_is_rejected(web: Web, path: str) -> None:
    with web.http() as http:
        for kind in (
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "text/plain",
            "json",
        ):
            answer = http.post(path, content=b"{}", headers={"Content-Type": kind})
            assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
            assert "application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "kind", [None, "application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"]
)
def test_json_is_accepted_under_its_names(web: Web, kind: str | None) -> None:
    body = json.dumps({"model": MODEL_NAME, "prompt": "x", "max_tokens": 1})
    with web.http() as http:
        headers = {} if kind is None else {"Content-Type": kind}
        assert http.post("/v1/completions", content=body, headers=headers).status_code == 200


def test_large_requests_at_once_are_all_served(web: Web) -> None:
    """Together they are larger than the memory for large bodies, so some of them wait."""
    size = LARGE_BODIES_BYTES // 3
    body = b'{"model":"none","prompt":"' + b"x" * size + b'"}'

    async def post_all() -> list[int]:
        async with httpx.AsyncClient(base_url=web.url, timeout=60) as http:
            answers = await asyncio.gather(*(http.post("/v1/completions", content=body) for _ in range(8)))
        return [answer.status_code for answer in answers]

    assert asyncio.run(post_all()) == [404] * 8  # there is no such model
