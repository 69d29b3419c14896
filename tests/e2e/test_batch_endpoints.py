"""Every endpoint that an engine computes is a batch endpoint too, and answers there as it does over HTTP."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from bros_batch.openai_api.endpoints import ENDPOINTS
from tests.services import wait_for
from tests.up_process import running_up

QUESTIONS = [
    {"type": "predicate", "name": "urgent", "instructions": "This is urgent."},
    {"type": "choice", "instructions": "Which?", "choices": [{"value": "a"}, {"value": "b"}]},
]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3},
    "/v1/completions": {"prompt": ["Hello", "World"], "max_tokens": 3, "n": 2, "ignore_eos": True},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 3, "store": False},
    "/v1/decisions": {"input": "Please hurry.", "questions": QUESTIONS},
    "/v1/systemone": {
        "state": "Please hurry.",
        "questions": {"mood": {"type": "choice", "criteria": {"calm": None, "tense": None}}},
    },
    "/v1/embeddings": {"input": ["one", "two", "three"]},
}
VARYING = ("id", "created", "created_at", "completed_at", "cached_tokens")


def comparable(body: Any) -> Any:
    """A response body without what differs from request to request."""
    if isinstance(body, dict):
        return {name: comparable(value) for name, value in body.items() if name not in VARYING}
    return [comparable(each) for each in body] if isinstance(body, list) else body


@pytest.mark.slow
def test_each_endpoint_answers_in_a_batch_as_over_http(tmp_path: Path) -> None:
    assert set(BODIES) == set(ENDPOINTS)
    with (
        running_up(tmp_path / "data", BROS_EMBEDDINGS="true") as up,
        OpenAI(base_url=f"{up.state()['url']}/v1", api_key="none") as client,
    ):
        for url, body in BODIES.items():
            asked = {"model": "tiny", "temperature": 0, **body}
            if url in ("/v1/decisions", "/v1/systemone", "/v1/embeddings"):
                del asked["temperature"]
            alone = client.post(url.removeprefix("/v1"), body=asked, cast_to=object)
            lines = tmp_path / "lines.jsonl"
            lines.write_text(
                "".join(
                    json.dumps({"custom_id": str(i), "method": "POST", "url": url, "body": asked}) + "\n"
                    for i in range(3)
                )
            )
            file = client.files.create(file=lines, purpose="batch")
            batch_id = client.batches.create(
                input_file_id=file.id,
                endpoint=url,  # type: ignore[arg-type]
                completion_window="24h",
            ).id
            batch = wait_for(partial(ended, client, batch_id), f"the batch of {url}", timeout_s=120)
            assert batch.output_file_id, (url, client.batches.retrieve(batch_id))
            output = client.files.content(batch.output_file_id).text.splitlines()
            assert len(output) == 3, url
            for line in output:
                assert comparable(json.loads(line)["response"]["body"]) == comparable(alone), url


def ended(client: OpenAI, batch_id: str) -> Any:
    """The batch if it has ended."""
    batch = client.batches.retrieve(batch_id)
    return batch if batch.status in ("completed", "failed", "expired", "cancelled") else None
