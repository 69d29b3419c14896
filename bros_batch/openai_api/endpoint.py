"""What an endpoint defines: how a body is parsed, what it becomes for the engine, and what it is answered with.

The web process and the workers of jobs use endpoints only by this interface, so each endpoint serves both lanes:

    body --parse--> request --engine_requests--> engine --outcome--> response body
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

from msgspec import Raw

from bros_batch.openai_api.completion_response import Json, ResponseHead
from bros_batch.openai_api.endpoints import EndpointPath
from bros_batch.openai_api.engine_limits import check_limits
from bros_batch.openai_api.engine_requests import EngineRequests
from bros_batch.openai_api.sampling_defaults import SamplingDefaults
from bros_batch.openai_api.served_request import ServedRequest
from bros_batch.settings import Settings
from bros_batch.text.embedding_form import DEFAULT_FORM, EmbeddingForm
from bros_batch.text.message_form import PLAIN, MessageForm
from bros_batch.text.tokenizer import ModelTokenizer
from engine.wire.item_messages import Choice, ItemResult
from engine.wire.limits import EngineLimits
from engine.wire.request_terms import Slo

RequestT = TypeVar("RequestT", bound=ServedRequest)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model that a request is for: its tokenizer, the limits of its engine, and the sampling defaults."""

    tokenizer: ModelTokenizer
    limits: EngineLimits
    defaults: SamplingDefaults
    embedding_form: EmbeddingForm | None = None  # None if the model makes no embeddings


def embedding_form(settings: Settings, tokenizer: ModelTokenizer) -> EmbeddingForm | None:
    """Return how a service makes embeddings: as the model's files say, or by the default form if it is told to."""
    return tokenizer.embedding_form or (DEFAULT_FORM if settings.embeddings else None)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the engine returned: the choices of all parts in order, `num_choices` for each.

    `prompt_tails` holds for each choice the last tokens of its prompt, on which the text of its output may depend.
    """

    choices: Sequence[Choice]
    prompt_tails: Sequence[Sequence[int]]
    prompt_tokens: int
    cached_tokens: int

    @property
    def output_tokens(self) -> int:
        return sum(len(choice.token_ids) for choice in self.choices)

    @property
    def num_values(self) -> int:
        """Number of tokens, log-probabilities and elements of vectors that a response shows."""
        return sum(map(_num_values, self.choices))


def _must_be_parsed(_fields: Mapping[str, Raw]) -> None:
    return None


def _num_values(choice: Choice) -> int:
    of_output = sum(1 + len(position.top) for position in choice.logprobs or ())
    of_prompt = 0 if choice.prompt_logprobs is None else choice.prompt_logprobs.num_logprobs
    of_prompt += len(choice.scores or ()) + len(choice.embedding or b"") // 4
    return len(choice.token_ids) + of_output + of_prompt


def outcome_of(result: ItemResult) -> Outcome:
    """Return the outcome of an item."""
    tails = [choice.prompt_tail or result.prompt_tail for choice in result.choices]
    return Outcome(result.choices, tails, result.prompt_tokens, result.cached_tokens)


Responder = Callable[[ResponseHead, Outcome], Json]
# What the engine computes for a body, given the JSON of its fields by name; None if the body has to be parsed for that.
Requester = Callable[[Mapping[str, Raw]], EngineRequests | None]


class Endpoint(ABC, Generic[RequestT]):
    """One endpoint of the API whose requests an engine computes."""

    path: ClassVar[EndpointPath]
    # The fields of a body that a job's documents fill, with a value that is valid and is replaced (`with_document`).
    document_fields: ClassVar[Mapping[str, Any]]

    @abstractmethod
    def parse(self, raw: bytes | str) -> RequestT:
        """Parse the JSON of a body. Raises RequestError, which names the first invalid field."""

    @abstractmethod
    def with_document(self, request: RequestT, prompt: str, system: str | None) -> RequestT:
        """Return `request`, which the documents of a job share, for one of them: its prompt and system message."""

    @abstractmethod
    def engine_requests(self, request: RequestT, model: ServedModel) -> EngineRequests:
        """Tokenize `request`. Raises RequestError for what the model cannot compute."""

    @abstractmethod
    def response(self, head: ResponseHead, request: RequestT, model: ServedModel, outcome: Outcome) -> Json:
        """Return the response body for a request that the engine has computed."""

    def responder(self, request: RequestT, model: ServedModel) -> Responder:
        """Return `response` for any number of outcomes of requests that differ from `request` in their prompts only."""

        def respond(head: ResponseHead, outcome: Outcome) -> Json:
            return self.response(head, request, model, outcome)

        return respond

    def requester(self, request: RequestT, model: ServedModel) -> Requester:
        """Return `checked_engine_requests` for any number of bodies whose requests differ from `request` in their
        prompts only, as far as it is faster without parsing them."""
        return _must_be_parsed

    def has_plain_prompt(self, fields: Mapping[str, Raw]) -> bool:
        """Return whether a body, given by the JSON of its fields, is valid if it is with `document_fields` instead of
        its prompt. False if only parsing it tells."""
        return False

    def message_form(self, request: RequestT, tokenizer: ModelTokenizer) -> MessageForm:
        """Return what the outputs consist of, besides text."""
        return PLAIN

    def unused_parameters(self, request: RequestT, tokenizer: ModelTokenizer) -> list[str]:
        """Return the parameters of `request` that have no effect with this model."""
        return []

    def param_of_part(self, request: RequestT, index: int) -> str:
        """Return how errors name the prompt of a part: as a field of the request."""
        return f"{request.prompt_param}[{index}]"

    def checked_engine_requests(
        self, request: RequestT, model: ServedModel, slo: Slo | None = None
    ) -> EngineRequests:
        """Return `engine_requests`, all of which the engine will accept. Raises RequestError otherwise."""
        requests = self.engine_requests(request, model)
        self.check_limits(requests, request, model, slo)
        return requests

    def check_limits(
        self, requests: EngineRequests, request: RequestT, model: ServedModel, slo: Slo | None = None
    ) -> None:
        """Raise RequestError unless the engine will accept what `request` became."""
        check_limits(requests, model.limits, slo, request.prompt_param, partial(self.param_of_part, request))
