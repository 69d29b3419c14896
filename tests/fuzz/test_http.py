"""Every HTTP route with bodies, parameters and headers that are nearly right, and bytes that are not HTTP at all."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from bros_batch.openai_api.endpoints import ENDPOINTS
from bros_batch.settings import Settings
from bros_batch.web.app import create_app
from tests.fuzz.examples import EXAMPLES, fuzz
from tests.fuzz.strategies import changed, deep, texts, values
from tests.fuzz.target import Target

MESSAGES = [{"role": "user", "content": "What is the total?"}]
SAMPLING = {
    "max_tokens": 4,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "seed": 3,
    "n": 1,
    "stop": ["."],
    "stop_token_ids": [5],
    "logit_bias": {"7": 1},
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "repetition_penalty": 1.1,
    "min_tokens": 1,
    "ignore_eos": False,
    "stream": False,
    "priority": 0,
    "service_tier": "auto",
    "slo": {"ttft_ms": 500, "tpot_ms": 100},
    "user": "a",
    "metadata": {"a": "b"},
}
SCHEMA = {
    "type": "object",
    "properties": {
        "total": {"type": "number", "minimum": 0},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}, "maxItems": 3},
        "kind": {"enum": ["a", "b"]},
        "code": {"type": "string", "pattern": "^[A-Z]{2,4}$", "maxLength": 8},
    },
    "required": ["total"],
    "$defs": {"line": {"oneOf": [{"type": "string", "minLength": 1}, {"type": "null"}]}},
}
TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "-", "parameters": SCHEMA, "strict": True}}
]
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"total": 1}'}}
CONVERSATION = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    *MESSAGES,
    {"role": "assistant", "content": None, "reasoning_content": "<think>", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "1"},
]
ITEMS = [
    {"role": "user", "content": [{"type": "input_text", "text": "What is the total?"}]},
    {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "call_1", "output": "1"},
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "-"}]},
]
QUESTIONS = [
    {"type": "predicate", "instructions": "Is it paid?", "name": "a"},
    {
        "type": "choice",
        "instructions": "Which?",
        "choices": [{"value": "x", "description": "-"}, {"value": True}],
    },
    {
        "type": "score",
        "instructions": [{"type": "input_text", "text": "?"}],
        "levels": [{"label": "0"}, {"label": "1"}],
    },
]
# What a request says about the answer's shape; each is drawn by itself, because a request has at most one.
SHAPES: tuple[dict[str, Any], ...] = (
    {},
    {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "a", "strict": True, "schema": SCHEMA},
        }
    },
    {"response_format": {"type": "json_object", "schema": SCHEMA}},
    {"structured_outputs": {"json": json.dumps(SCHEMA), "disable_any_whitespace": True}},
    {"structured_outputs": {"choice": ["a", "b"]}},
    {"guided_json": SCHEMA},
    {"guided_regex": "[a-z]{1,5}(x|y)?"},
    {"guided_choice": ["yes", "no"]},
    {"guided_grammar": 'start: "a" b+\nb: /[0-9]/ | %json {"type": "null"}'},
    {"guided_grammar": 'root ::= "a" b\nb ::= [0-9]+'},
)
# A valid body of each route that takes one; routes without an entry get any JSON.
BODIES: dict[str, Any] = {
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": MESSAGES,
        "logprobs": True,
        "top_logprobs": 2,
        "prompt_logprobs": None,
        "chat_template_kwargs": {"enable_thinking": False},
        "reasoning_effort": "low",
        "include_reasoning": True,
        "truncate_prompt_tokens": 100,
        **SAMPLING,
    },
    "/v1/completions": {
        "model": "tiny",
        "prompt": ["Total:", [5, 6, 7]],
        "logprobs": 2,
        "echo": True,
        "prompt_logprobs": 3,
        **SAMPLING,
    },
    "/v1/responses": {
        "model": "tiny",
        "input": ITEMS,
        "instructions": "Be brief.",
        "max_output_tokens": 4,
        "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}, "verbosity": "low"},
        "reasoning": {"effort": "low"},
        "tools": [{"type": "function", "name": "f", "parameters": SCHEMA, "strict": True}],
        "tool_choice": "auto",
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "truncation": "auto",
        "metadata": {"a": "b"},
        "previous_response_id": None,
        "store": True,
        "background": False,
        "stream": False,
    },
    "/v1/decisions": {"model": "tiny", "input": ITEMS[:1], "questions": QUESTIONS},
    "/v1/systemone": {
        "model": "tiny",
        "state": {"a": 1},
        "instructions": "Be brief.",
        "chat_template_kwargs": {"enable_thinking": False},
        "questions": {
            "a": {"type": "choice", "instructions": "Which?", "criteria": {"x": None, "y": "-"}},
            "b": {"type": "score", "criteria": ["low", "high"]},
            "c": {"type": "noul", "criteria": {"true": "paid"}},
        },
    },
    "/v1/embeddings": {
        "model": "tiny",
        "input": ["Total:", "Invoice"],
        "encoding_format": "base64",
        "dimensions": 8,
    },
    "/tokenize": {"model": "tiny", "messages": MESSAGES, "tools": [], "return_token_strs": True},
    "/detokenize": {"model": "tiny", "tokens": [5, 6, 7]},
    "/v1/batches": {
        "input_file_id": "file-none",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": {"name": "a"},
        "priority": 1,
        "defaults": {"prompt": "{text}", "max_tokens": 4},
    },
    "/chat": {"messages": MESSAGES},
}
# Further bodies: with each shape, with tools, and with the other fields that cannot stand beside each other.
VARIANTS: dict[str, list[Any]] = {
    "/v1/chat/completions": [
        *({**BODIES["/v1/chat/completions"], **shape} for shape in SHAPES),
        *(
            {
                "model": "tiny",
                "messages": CONVERSATION,
                "max_tokens": 4,
                "tools": TOOLS,
                "tool_choice": choice,
                **shape,
            }
            for choice in ("auto", "required", {"type": "function", "function": {"name": "f"}})
            for shape in SHAPES[:2]
        ),
        {"model": "tiny", "messages": CONVERSATION, "max_tokens": 4, "continue_final_message": True},
    ],
    "/v1/completions": [
        *({"model": "tiny", "prompt": "Total:", **SAMPLING, **shape} for shape in SHAPES),
        BODIES["/v1/completions"],
        {"model": "tiny", "prompt": "Total:", "max_tokens": 0, "prompt_logprobs": 2, "n": 2},
    ],
    "/v1/responses": [
        BODIES["/v1/responses"],
        {"model": "tiny", "input": "Total?", "background": True, "max_output_tokens": 2, "stream": True},
    ],
    "/tokenize": [BODIES["/tokenize"], {"model": "tiny", "prompt": "Total:", "add_special_tokens": False}],
}
FILE = b'{"text": "one"}\n{"text": "two"}\n'


def all_routes() -> list[tuple[str, str]]:
    """(method, path) of every route that there is."""
    app = create_app(Settings(model=str(Path("bros_batch/demo/model")), data_dir=Path("/nonexistent")))
    return sorted({(method, route.path) for route in app.state.routes for method in route.methods or ()})


ROUTES = all_routes()


def test_every_endpoint_has_a_body() -> None:
    """A new endpoint is drawn from as soon as it exists."""
    assert {*ENDPOINTS, "/tokenize", "/detokenize"} <= BODIES.keys()


path_values = st.one_of(texts, st.sampled_from(["..", "batch_x", "file-x", "-1", "a/b", "%2e%2e"])).map(
    lambda text: quote(text, safe="", errors="replace")
)
HEADERS = (
    "Accept Range Content-Type Cookie Authorization Origin If-None-Match Expect Idempotency-Key X-Request-Id "
    "Last-Event-ID Accept-Language Content-Encoding"
)
header_names = st.sampled_from(HEADERS.split())
header_values = st.one_of(
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=60),
    st.sampled_from(
        ["text/event-stream", "application/json", "bytes=abc", "bytes=-1-", "Bearer", "gzip", "="]
    ),
).map(lambda text: text.encode("latin-1"))
headers = st.dictionaries(header_names, header_values, max_size=3)
params = st.dictionaries(
    st.sampled_from(["limit", "after", "order", "purpose", "q", "page"]),
    texts.map(lambda text: text.encode(errors="replace").decode()),
    max_size=2,
)


@st.composite
def requests(draw: st.DrawFn, method: str, path: str) -> dict[str, Any]:
    """The arguments of a request to a route: any values in its path, nearly right or any JSON as its body."""
    bodies = (
        st.one_of(*map(changed, VARIANTS.get(path, [BODIES[path]])), values) if path in BODIES else values
    )
    body = st.one_of(*[bodies.map(json.dumps)] * 9, deep)
    return {
        "method": method,
        "url": re.sub(r"\{\w+[^}]*\}", lambda _: draw(path_values), path),
        "content": draw(body).encode(errors="surrogatepass"),
        "headers": list({"Content-Type": b"application/json", **draw(headers)}.items()),
        "params": draw(params),
    }


def check(answer: httpx.Response) -> None:
    """Whatever was sent, the answer is one that a client understands."""
    assert answer.status_code < 500 or answer.status_code == 503, (answer.status_code, answer.text[:500])
    is_page = "text/html" in answer.headers.get("content-type", "")
    if answer.status_code >= 400 and not is_page and answer.request.method != "HEAD":
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]


def send(target: Target, **request: Any) -> None:
    """Send a request. Streams are read for a moment only, and a long answer is left, as clients do that go away."""
    target.sent["http"] += 1
    try:
        with target.http.stream(timeout=5, **request) as answer:
            event(f"{request['method']} {answer.status_code // 100}xx")
            if answer.headers.get("content-type", "").startswith("text/event-stream"):
                next(answer.iter_raw(), b"")
            else:
                answer.read()
                check(answer)
    except httpx.ReadTimeout:
        event("left")
    except (httpx.InvalidURL, httpx.LocalProtocolError):
        assume(False)  # this client does not send it; `test_bytes_that_are_not_http` does


@pytest.mark.parametrize("path", BODIES)
def test_routes_that_take_a_body(watched: Target, path: str) -> None:
    @fuzz
    @given(request=requests("POST", path))
    def run(request: dict[str, Any]) -> None:
        send(watched, **request)

    run()
    watched.wait_until_idle()


@settings(fuzz, max_examples=5 * EXAMPLES)
@given(request=st.sampled_from(ROUTES).flatmap(lambda route: requests(*route)))
def test_every_route(watched: Target, request: dict[str, Any]) -> None:
    send(watched, **request)


@fuzz
@given(data=st.data())
def test_uploads(watched: Target, data: st.DataObject) -> None:
    boundary = data.draw(st.sampled_from(["b", "b" * 70, "", '"']))
    names = st.sampled_from(["file", "purpose", "expires_after[anchor]", "expires_after[seconds]", "x"])
    parts = data.draw(
        st.lists(st.tuples(names, st.one_of(texts, st.just("batch"), st.just(FILE.decode()))), max_size=6)
    )
    lines = []
    for name, text in parts:
        filename = data.draw(
            st.sampled_from(["", '; filename="a.jsonl"', "; filename*=UTF-8''a%ff", '; filename="\r\n"'])
        )
        lines.append(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n\r\n{text}\r\n'
        )
    body = ("".join(lines) + f"--{boundary}--\r\n").encode(errors="surrogatepass")
    if data.draw(st.booleans()):
        body = body[: data.draw(st.integers(0, len(body)))]
    send(
        watched,
        method="POST",
        url="/v1/files",
        content=body,
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )


@fuzz
@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.builds(
            lambda line, name, value, body: (
                line + b"\r\nHost: 127.0.0.1\r\n" + name + b": " + value + b"\r\n\r\n" + body
            ),
            st.sampled_from(
                [b"GET / HTTP/1.1", b"POST /v1/chat/completions HTTP/1.1", b"GET //[ HTTP/1.1", b"X / HTTP/9"]
            ),
            st.sampled_from(
                [
                    b"Content-Length",
                    b"Transfer-Encoding",
                    b"Expect",
                    b"Connection",
                    b"Upgrade",
                    b"Host",
                    b"\xff",
                ]
            ),
            st.one_of(
                st.sampled_from([b"-1", b"9" * 40, b"chunked", b"gzip, chunked", b"100-continue", b"["]),
                st.binary(max_size=40),
            ),
            st.one_of(st.binary(max_size=100), st.just(b"5\r\nabc"), st.just(b"fffffffffffffffff\r\n")),
        ),
    )
)
def test_bytes_that_are_not_http(watched: Target, data: bytes) -> None:
    watched.sent["bytes"] += 1
    address = urlsplit(watched.url)
    with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except (TimeoutError, ConnectionError):
            return
    assert not re.match(rb"HTTP/1.1 50[0-2]", answer), answer[:500]
