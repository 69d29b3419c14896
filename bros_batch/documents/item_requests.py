"""The request that a line is: a batch line's body as it stands, a document put into its job's prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from bros_batch.openai_api.completion_request import Request, parse_body
from bros_batch.openai_api.endpoints import CHAT_COMPLETIONS
from bros_batch.openai_api.prompts import encode_prompts
from bros_batch.openai_api.sampling import fitted_sampling, sampling_of
from bros_batch.request_error import RequestError
from bros_batch.text.template import render_template
from bros_batch.text.tokenizer import ModelTokenizer
from engine.wire.protocol import Sampling

BATCH = "batch"
DOCUMENT = "document"
DEFAULT_PROMPT = "{text}"

_decode_document = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, slots=True)
class JobRequests:
    """How the lines of one job become tokens. `shared` is the request that all documents of a job are, but for
    their text; None for batch lines, each of which is its own."""

    endpoint: str
    model: str
    shared: Request | None
    prompt: str
    system: str | None

    def request_of(self, body: str) -> Request:
        return parse_body(self.endpoint, body) if self.shared is None else self.shared

    def sampling_of(self, body: str, default_max_tokens: int) -> Sampling:
        """The sampling of a line that was prepared before."""
        return sampling_of(self.request_of(body), default_max_tokens)

    def prepare(
        self, text: ModelTokenizer, body: str, line_no: int, max_model_len: int, default_max_tokens: int
    ) -> tuple[list[int], Request, Sampling]:
        """A line's tokens, request and sampling. Raises RequestError with what is wrong with the line."""
        request = self.request_of(body)
        if self.shared is None:
            prompts = encode_prompts(text, request)
            if len(prompts) != 1:
                raise RequestError(f"A batch line holds one prompt, not {len(prompts)}.", "prompt")
            token_ids = prompts[0]
        else:
            token_ids = self._encode_document(text, body, line_no)
        sampling = fitted_sampling(
            request, len(token_ids), max_model_len=max_model_len, default_max_tokens=default_max_tokens
        )
        return token_ids, request, sampling

    def _encode_document(self, text: ModelTokenizer, body: str, line_no: int) -> list[int]:
        document = _decode_document(body)
        prompt = render_template(self.prompt, document, line_no)
        system = None if self.system is None else render_template(self.system, document, line_no)
        if self.endpoint != CHAT_COMPLETIONS:
            return text.encode_prompt(prompt if system is None else f"{system}\n\n{prompt}")
        turns = [] if system is None else [{"role": "system", "content": system}]
        return text.encode_chat([*turns, {"role": "user", "content": prompt}])


def job_requests(endpoint: str, model: str, form: str | None, defaults: Mapping[str, Any]) -> JobRequests:
    """How a job's lines become requests. Raises RequestError where the job's own defaults are at fault."""
    options = {name: value for name, value in defaults.items() if value is not None}
    prompt = options.pop("prompt", DEFAULT_PROMPT)
    system = options.pop("system", None)
    for name, value in (("prompt", prompt), ("system", system)):
        if value is not None and not isinstance(value, str):
            raise RequestError(f"'{name}' must be a string.", name)
    if form != DOCUMENT:
        return JobRequests(endpoint, model, None, prompt, system)
    body: dict[str, Any] = {**options, "model": model}
    if endpoint == CHAT_COMPLETIONS:
        body["messages"] = [{"role": "user", "content": "-"}]
    else:
        body["prompt"] = "-"
    return JobRequests(
        endpoint, model, checked(parse_body(endpoint, msgspec.json.encode(body))), prompt, system
    )


def checked(request: Request) -> Request:
    """A request that may stand in a batch; RequestError for what only makes sense to somebody who waits."""
    if request.stream:
        raise RequestError("'stream' is not for batches: their results come in a file.", "stream")
    return request
