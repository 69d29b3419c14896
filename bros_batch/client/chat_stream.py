"""A streamed chat answer and its timing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bros_batch.client.http_client import Client


@dataclass(slots=True)
class ChatAnswer:
    """An answer. `ttft_s` is the time to the first text as the client measured it; None if there was no text.

    `calls` are tool calls, each a dict with `id`, `name` and `arguments`, which are JSON.
    """

    text: str = ""
    reasoning: str = ""
    calls: list[dict[str, str]] = field(default_factory=list)
    ttft_s: float | None = None
    total_s: float = 0.0
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)

    def stats(self) -> str:
        """Return the timing in words, such as "first token after 12 ms, 50 tokens, 90 tokens/s"."""
        tokens = self.usage.get("completion_tokens") or 0
        parts = [f"first token after {1000 * (self.ttft_s or self.total_s):.0f} ms", f"{tokens} tokens"]
        if self.ttft_s is not None and tokens > 1 and self.total_s > self.ttft_s:
            parts.append(f"{(tokens - 1) / (self.total_s - self.ttft_s):.0f} tokens/s")
        return ", ".join(parts)


def ask(
    client: Client,
    body: Mapping[str, Any],
    on_text: Callable[[str], None],
    on_reasoning: Callable[[str], None] = lambda piece: None,
) -> ChatAnswer:
    """Send a chat request, and pass each piece of the answer and of the reasoning before it on as it arrives."""
    answer = ChatAnswer()
    started_s = time.perf_counter()
    for chunk in client.stream_chat(body):
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta", {})
            text, reasoning, calls = map(delta.get, ("content", "reasoning_content", "tool_calls"))
            if answer.ttft_s is None and (text or reasoning or calls):
                answer.ttft_s = time.perf_counter() - started_s
            if reasoning:
                answer.reasoning += reasoning
                on_reasoning(reasoning)
            if text:
                answer.text += text
                on_text(text)
            for call in calls or ():
                function = call.get("function", {})
                if function.get("name"):
                    name = function["name"]
                    answer.calls.append({"id": call.get("id") or "", "name": name, "arguments": ""})
                answer.calls[-1]["arguments"] += function.get("arguments") or ""
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        answer.usage = chunk.get("usage") or answer.usage
    answer.total_s = time.perf_counter() - started_s
    return answer
