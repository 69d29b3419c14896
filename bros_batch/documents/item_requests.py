"""The request that an item stands for: the body of a batch line as it is, or a document put into its job's prompt.

An item's body is kept as text and parsed once per stage: ingest checks it, prepare makes tokens of it, and record reads
how its output is to be cut and formatted. `bros_batch.db.tables.Item` says why it is not kept in a parsed form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from bros_batch.documents.form import DOCUMENT
from bros_batch.openai_api.completion_request import ChatCompletionRequest, Request, parse_body
from bros_batch.openai_api.endpoints import CHAT_COMPLETIONS
from bros_batch.openai_api.engine_limits import check_limits
from bros_batch.openai_api.prompts import encode_prompts
from bros_batch.openai_api.sampling import fitted_sampling, sampling_of
from bros_batch.openai_api.sampling_defaults import SamplingDefaults
from bros_batch.openai_api.validation import check_strict
from bros_batch.request_error import RequestError
from bros_batch.text.template import Template, parse_template
from bros_batch.text.tokenizer import ModelTokenizer
from engine.wire.limits import ModelLimits
from engine.wire.protocol import Sampling

DEFAULT_PROMPT = "{text}"

_decode_document = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, slots=True)
class JobRequests:
    """How the items of one job become tokens.

    `shared` is the request that all documents of a job have in common, apart from their text. It is None for batch
    lines, each of which is a request of its own.
    """

    endpoint: str
    model: str
    shared: Request | None
    prompt: Template
    system: Template | None

    def request_of(self, body: str) -> Request:
        return parse_body(self.endpoint, body) if self.shared is None else self.shared

    def sampling_of(self, body: str, defaults: SamplingDefaults) -> Sampling:
        """The sampling of an item that was prepared before."""
        return sampling_of(self.request_of(body), defaults)

    def encode(
        self,
        tokenizer: ModelTokenizer,
        body: str,
        line_no: int,
        max_model_len: int,
        defaults: SamplingDefaults,
    ) -> tuple[list[int], Request, Sampling]:
        """The tokens, request and sampling of an item. Raises RequestError, which says what is wrong with the line."""
        request = self.request_of(body)
        if self.shared is None:
            prompts = encode_prompts(tokenizer, request)
            if len(prompts) != 1:
                raise RequestError(f"A batch line holds one prompt, not {len(prompts)}.", "prompt")
            token_ids = prompts[0]
        else:
            token_ids = self._encode_document(tokenizer, body, line_no)
        sampling = fitted_sampling(request, len(token_ids), max_model_len=max_model_len, defaults=defaults)
        check_limits(request, token_ids, sampling, ModelLimits(max_model_len, tokenizer.vocab_size))
        return token_ids, request, sampling

    def _encode_document(self, tokenizer: ModelTokenizer, body: str, line_no: int) -> list[int]:
        document = _decode_document(body)
        prompt = self.prompt.render(document, line_no)
        system = None if self.system is None else self.system.render(document, line_no)
        if self.endpoint != CHAT_COMPLETIONS:
            return tokenizer.encode_prompt(prompt if system is None else f"{system}\n\n{prompt}")
        messages = [] if system is None else [{"role": "system", "content": system}]
        kwargs = self.shared.template_kwargs if isinstance(self.shared, ChatCompletionRequest) else None
        return tokenizer.encode_chat([*messages, {"role": "user", "content": prompt}], kwargs)


def job_requests(endpoint: str, model: str, form: str | None, defaults: Mapping[str, Any]) -> JobRequests:
    """How the items of a job become requests. Raises RequestError if the job's own defaults are invalid."""
    options = {name: value for name, value in defaults.items() if value is not None}
    prompt = _template(options.pop("prompt", DEFAULT_PROMPT), "prompt")
    system = _template(options.pop("system"), "system") if "system" in options else None
    if form != DOCUMENT:
        return JobRequests(endpoint, model, None, prompt, system)
    body: dict[str, Any] = {**options, "model": model}
    if endpoint == CHAT_COMPLETIONS:
        body["messages"] = [{"role": "user", "content": "-"}]
    else:
        body["prompt"] = "-"
    shared = without_stream(parse_body(endpoint, msgspec.json.encode(body)))
    check_strict(shared)  # nobody but our own clients writes a job's defaults: an unknown name is a mistake
    return JobRequests(endpoint, model, shared, prompt, system)


def _template(source: Any, name: str) -> Template:
    if not isinstance(source, str):
        raise RequestError(f"'{name}' must be a string.", name)
    try:
        return parse_template(source)
    except RequestError as error:
        raise RequestError(f"'{name}' is not usable: {_lowered(error.message)}", name) from None


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def prompt_fields(defaults: Mapping[str, Any]) -> list[str]:
    """The fields of the job's own prompt; none if it has no prompt. The defaults must be valid."""
    prompt = defaults.get("prompt")
    return [] if prompt is None else parse_template(prompt).fields


def try_job_requests(
    endpoint: str, model: str, form: str | None, defaults: Mapping[str, Any]
) -> JobRequests | RequestError:
    """As `job_requests`, but returns the error, which then is the error of each item of the job."""
    try:
        return job_requests(endpoint, model, form, defaults)
    except RequestError as error:
        return error


def without_stream(request: Request) -> Request:
    """The request itself. Raises RequestError if it asks for a stream, which a batch cannot have."""
    if request.stream:
        raise RequestError("'stream' is not for batches: their results come in a file.", "stream")
    return request
