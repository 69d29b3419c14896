"""The forecast of a job that has not been submitted, from a server with a simulated engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.bros_batch.web.serving import MODEL_NAME, Web

CHAT = "/v1/chat/completions"


@pytest.fixture
def http(web: Web) -> Iterator[httpx.Client]:
    with web.http() as http:
        yield http


def ask(http: httpx.Client, lines: list[Any], **job: Any) -> dict[str, Any]:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    sampled = [{"row": number, "line": text} for number, text in enumerate(texts, start=1)]
    body = {"endpoint": CHAT, "rows": len(lines), "lines": sampled, **job}
    answer = http.post("/v1/batches/forecast", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_documents_have_the_tokens_of_their_requests_and_nothing_is_created(http: httpx.Client) -> None:
    jobs = http.get("/v1/batches").json()["data"]
    texts = ["a b c", "d", "e f"]
    lines = [
        {"text": texts[0]},
        {"text": texts[1]},
        {"_error": "Row 3, x: it is damaged."},
        {"text": texts[2]},
    ]
    lines.append({"other": 1})
    found = ask(http, lines, defaults={"prompt": "Say {text}!", "max_tokens": 8})
    expected = 0
    for text in texts:
        messages = [{"role": "user", "content": f"Say {text}!"}]
        expected += http.post("/tokenize", json={"model": MODEL_NAME, "messages": messages}).json()["count"]
    assert found["input_tokens"] == expected
    assert (found["rows"], found["sampled"], found["output_tokens"]) == (5, 5, 3 * 4)
    assert found["rejected"]["rows"] == 2
    first, second = found["rejected"]["data"]
    assert first == {"row": 3, "message": "Row 3, x: it is damaged."}
    assert second["row"] == 5
    assert "which the document does not have" in second["message"]
    assert found["first"]["prompt"] == "Say a b c!"
    assert found["first"]["request"]["messages"] == [{"role": "user", "content": "Say a b c!"}]
    assert found["reused_rows"] == 0
    assert found["chats"].keys() == {"beside_bulk_s", "alone_s", "in_time"}
    assert found["forecast"] is None, "no engine has computed any bulk"
    assert http.get("/v1/batches").json()["data"] == jobs


def test_a_sample_stands_for_all_rows(http: httpx.Client) -> None:
    lines = [{"text": "a"}] * 3 + ["not JSON"]
    defaults = {"prompt": "{text}", "max_tokens": 8}
    some, all_of_them = ask(http, lines, rows=4000, defaults=defaults), ask(http, lines, defaults=defaults)
    assert (some["rows"], some["sampled"], some["rejected"]["rows"]) == (4000, 4, 1000)
    assert some["input_tokens"] == 1000 * all_of_them["input_tokens"]


def test_batch_lines_are_judged_as_by_ingest(http: httpx.Client) -> None:
    body = {"model": MODEL_NAME, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6}
    line = {"custom_id": "a", "method": "POST", "url": CHAT, "body": body}
    found = ask(http, [line, {**line, "url": "/v1/embeddings"}, {**line, "body": {**body, "model": "other"}}])
    assert (found["line_form"], found["rejected"]["rows"], found["output_tokens"]) == ("batch", 2, 3)
    assert found["first"] == {"row": 1, "prompt": None, "request": body}
    assert "is not served here" in found["rejected"]["data"][1]["message"]


def test_defaults_that_no_job_can_have_are_refused(http: httpx.Client) -> None:
    body = {
        "endpoint": CHAT,
        "rows": 1,
        "lines": [{"row": 1, "line": "{}"}],
        "defaults": {"temperature": "hot"},
    }
    answer = http.post("/v1/batches/forecast", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "defaults.temperature")
