"""Token counts of a stream: in every chunk if asked for."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI

from tests.bros_batch.web.serving import MODEL_NAME

QUESTION: Any = [{"role": "user", "content": "How long is a piece of string?"}]


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions"])
def test_usage_comes_in_every_chunk_if_asked_for(client: OpenAI, endpoint: str) -> None:
    prompt: dict[str, Any] = {"messages": QUESTION} if endpoint.startswith("chat") else {"prompt": "The dog"}
    create: Any = client.chat.completions.create if "messages" in prompt else client.completions.create
    asked: dict[str, Any] = {"model": MODEL_NAME, "max_tokens": 8, **prompt, "stream": True}
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(create(**asked, stream_options=options, extra_body={"ignore_eos": True}))
    assert all(chunk.usage for chunk in chunks)
    counted = [chunk.usage.completion_tokens for chunk in chunks]
    assert counted == sorted(counted)
    assert len(set(counted)) > 2, "the chunks have the usage so far"
    assert counted[-1] == 8
    assert chunks[-1].choices == []
    assert {chunk.usage.prompt_tokens for chunk in chunks} == {chunks[-1].usage.prompt_tokens}
    assert all(
        chunk.usage.total_tokens == chunk.usage.prompt_tokens + chunk.usage.completion_tokens
        for chunk in chunks
    )
