"""The request that a row stands for, written out as a client would send it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from bros_batch.documents.form import DOCUMENT
from bros_batch.documents.item_requests import DEFAULT_PROMPT
from bros_batch.openai_api.endpoints import CHAT_COMPLETIONS, COMPLETIONS, RESPONSES, SYSTEMONE
from bros_batch.text.template import parse_template

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RowRequest:
    """The body of a row's request. `prompt` is the job's template with the document in it; None for a batch line."""

    body: Any
    prompt: str | None


def row_request(
    path: str, model: str, form: str | None, defaults: Mapping[str, Any], body: str, row: int
) -> RowRequest:
    """The request of a row. Raises RequestError for a document that does not fit the job's template."""
    if form != DOCUMENT:
        return RowRequest(msgspec.Raw(body), None)
    options = {name: value for name, value in defaults.items() if value is not None}
    document = msgspec.json.decode(body)
    prompt = parse_template(options.pop("prompt", DEFAULT_PROMPT)).render(document, row)
    system = options.pop("system", None)
    if system is not None:
        system = parse_template(system).render(document, row)
    return RowRequest({**options, "model": model, **_filled(path, prompt, system)}, prompt)


def _filled(path: str, prompt: str, system: str | None) -> Json:
    """The fields of a request that a document fills."""
    if path == CHAT_COMPLETIONS:
        messages = [] if system is None else [{"role": "system", "content": system}]
        return {"messages": [*messages, {"role": "user", "content": prompt}]}
    if path in (RESPONSES, SYSTEMONE):
        field = "input" if path == RESPONSES else "state"
        return {field: prompt} if system is None else {field: prompt, "instructions": system}
    return {
        "prompt" if path == COMPLETIONS else "input": prompt if system is None else f"{system}\n\n{prompt}"
    }
