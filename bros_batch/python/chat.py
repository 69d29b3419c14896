"""One chat request and its answer, as text or in the shape of a schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from bros_batch.client.answer_schema import Schema, response_format
from bros_batch.client.chat_stream import ask
from bros_batch.client.http_client import Client as HttpClient
from bros_batch.python.answers import InvalidAnswer, validated


def chat_answer(
    client: HttpClient,
    message: str | Sequence[Mapping[str, Any]],
    schema: Schema | None,
    system: str | None,
    on_text: Callable[[str], None] | None,
    options: Mapping[str, Any],
) -> Any:
    """Send a message, or a list of messages, and return the answer. Raises InvalidAnswer if it has not the shape."""
    messages = [{"role": "user", "content": message}] if isinstance(message, str) else list(message)
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    body = {**options, "model": options.get("model") or client.served_model(), "messages": messages}
    if schema is not None:
        body["response_format"] = response_format(schema)
    answer = ask(client, body, on_text or (lambda piece: None))
    if schema is None:
        return answer.text
    try:
        value = msgspec.json.decode(answer.text)
    except msgspec.DecodeError:
        reason = "it reached max_tokens" if answer.finish_reason == "length" else "it is not JSON"
        raise InvalidAnswer(f"The answer does not follow the schema: {reason}.") from None
    return validated(value, schema) if isinstance(schema, type) else value
