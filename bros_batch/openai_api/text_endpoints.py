"""The endpoints that generate text: `/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeVar

import msgspec
from msgspec import Raw

from bros_batch.openai_api.chat_request import ChatCompletionRequest, parse_chat
from bros_batch.openai_api.completion_request import CompletionRequest, Request, parse_completion
from bros_batch.openai_api.completion_response import Json, ResponseHead, response_body, usage_object
from bros_batch.openai_api.endpoint import Endpoint, Outcome, Requester, Responder, ServedModel
from bros_batch.openai_api.endpoints import CHAT_COMPLETIONS, COMPLETIONS, EndpointPath
from bros_batch.openai_api.engine_requests import EngineRequests
from bros_batch.openai_api.message import Message
from bros_batch.openai_api.message_form import message_form, text_rules
from bros_batch.openai_api.prompt_logprobs import Prompt
from bros_batch.openai_api.prompts import (
    PromptEncoder,
    chat_encoder,
    encode_prompts,
    plain_messages,
    plain_text,
    text_encoder,
    truncated,
    unused_template_kwargs,
)
from bros_batch.openai_api.sampling import fitted_sampling, sampling_of
from bros_batch.openai_api.tools.answer_grammar import answer_grammar
from bros_batch.request_error import RequestError
from bros_batch.text.message_form import MessageForm, finished_choice
from bros_batch.text.tokenizer import ModelTokenizer
from engine.wire.request_terms import Part, Sampling

MAX_OUTPUTS = 256

RequestT = TypeVar("RequestT", ChatCompletionRequest, CompletionRequest)


class TextEndpoint(Endpoint[RequestT]):
    """What the two endpoints have in common: they differ in the bodies that they read and write."""

    def engine_requests(self, request: RequestT, model: ServedModel) -> EngineRequests:
        prompts = self._prompts(request, model)
        _check_num_outputs(request, len(prompts))
        samplings = [self.sampling(request, prompt, model) for prompt in prompts]
        if len(prompts) == 1:
            return EngineRequests(prompts[0], [Part([], samplings[0])], request.num_choices)
        parts = [Part(prompt, sampling) for prompt, sampling in zip(prompts, samplings, strict=True)]
        return EngineRequests([], parts, request.num_choices)

    def _prompts(self, request: RequestT, model: ServedModel) -> list[list[int]]:
        limit = model.limits.max_model_len
        return [truncated(request, prompt, limit) for prompt in encode_prompts(model.tokenizer, request)]

    def sampling(self, request: RequestT, prompt: list[int], model: ServedModel) -> Sampling:
        """Return the sampling parameters for one prompt of `request`. Raises RequestError."""
        limit = model.limits.max_model_len
        return fitted_sampling(request, len(prompt), max_model_len=limit, defaults=model.defaults)

    def common_sampling(self, request: RequestT, model: ServedModel) -> Sampling | None:
        """Return `sampling` for all prompts that leave room for so many tokens; None if it depends on the prompt."""
        sampling = sampling_of(request, model.defaults)
        is_valid = sampling.grammar is None and sampling.min_tokens <= sampling.max_tokens
        return sampling if is_valid else None

    def requester_of(self, encode: PromptEncoder, request: RequestT, model: ServedModel) -> Requester:
        """Return a requester for bodies whose only prompt is what `encode` returns."""
        common, limit = self.common_sampling(request, model), model.limits.max_model_len

        def requests_of(fields: Mapping[str, Raw]) -> EngineRequests | None:
            encoded = encode(fields)
            if encoded is None:
                return None
            prompt = truncated(request, encoded, limit)
            if common is not None and 0 < len(prompt) <= limit - common.max_tokens:
                sampling = common
            else:
                sampling = self.sampling(request, prompt, model)
            requests = EngineRequests(prompt, [Part([], sampling)], request.num_choices)
            self.check_limits(requests, request, model)
            return requests

        return requests_of

    def response(self, head: ResponseHead, request: RequestT, model: ServedModel, outcome: Outcome) -> Json:
        return self.responder(request, model)(head, outcome)

    def responder(self, request: RequestT, model: ServedModel) -> Responder:
        sampling = sampling_of(request, model.defaults)
        form = self.message_form(request, model.tokenizer)
        shows_prompt = request.shows_prompt

        def respond(head: ResponseHead, outcome: Outcome) -> Json:
            finished = [
                finished_choice(model.tokenizer, index, choice, sampling, tail, form)
                for index, (choice, tail) in enumerate(
                    zip(outcome.choices, outcome.prompt_tails, strict=True)
                )
            ]
            reasoning = (
                None if form.reasoning is None else sum(each.num_reasoning_tokens for each in finished)
            )
            usage = usage_object(
                outcome.prompt_tokens, outcome.output_tokens, outcome.cached_tokens, reasoning
            )
            body = response_body(head, finished, usage)
            if shows_prompt:
                self._show_prompts(request, model, outcome, body)
            return body

        return respond

    def _show_prompts(self, request: RequestT, model: ServedModel, outcome: Outcome, body: Json) -> None:
        """Add to a response what the request asks about its prompts."""
        encoded = self._prompts(request, model)
        sources: Sequence[str | list[int]] = encoded
        if isinstance(request, CompletionRequest) and request.truncate_prompt_tokens is None:
            sources = request.prompts
        for index, choice in enumerate(outcome.choices):
            number = index // request.num_choices
            prompt = Prompt(model.tokenizer, sources[number], encoded[number], choice.prompt_logprobs)
            shown = body["choices"][index]
            if isinstance(request, CompletionRequest) and request.echo:
                shown = body["choices"][index] = prompt.echoed(shown, request.logprobs)
            if request.prompt_logprobs is None:
                continue
            # In vLLM's responses, they belong to the choices of plain completions, and to a chat as a whole.
            place = body if isinstance(request, ChatCompletionRequest) else shown
            place["prompt_logprobs"] = prompt.logprobs(request.prompt_logprobs)

    def unused_parameters(self, request: RequestT, tokenizer: ModelTokenizer) -> list[str]:
        return unused_template_kwargs(tokenizer, request)


class ChatCompletions(TextEndpoint[ChatCompletionRequest]):
    """`POST /v1/chat/completions`: generate the next message of a chat."""

    path: ClassVar[EndpointPath] = CHAT_COMPLETIONS
    document_fields: ClassVar = {"messages": [{"role": "user", "content": "-"}]}

    def parse(self, raw: bytes | str) -> ChatCompletionRequest:
        return parse_chat(raw)

    def sampling(self, request: ChatCompletionRequest, prompt: list[int], model: ServedModel) -> Sampling:
        sampling = super().sampling(request, prompt, model)
        if sampling.grammar is None and not request.tools:
            return sampling
        tokenizer = model.tokenizer
        grammar = answer_grammar(
            tokenizer,
            sampling.grammar,
            request.tools or (),
            request.choice,
            self.message_form(request, tokenizer).first_phase(tokenizer, prompt),
            is_single=request.parallel_tool_calls is False or request.choice.mode == "named",
        )
        return sampling if grammar is sampling.grammar else msgspec.structs.replace(sampling, grammar=grammar)

    def common_sampling(self, request: ChatCompletionRequest, model: ServedModel) -> Sampling | None:
        return None if request.tools else super().common_sampling(request, model)

    def has_plain_prompt(self, fields: Mapping[str, Raw]) -> bool:
        return plain_messages(fields) is not None

    def requester(self, request: ChatCompletionRequest, model: ServedModel) -> Requester:
        return self.requester_of(chat_encoder(model.tokenizer, request), request, model)

    def message_form(self, request: ChatCompletionRequest, tokenizer: ModelTokenizer) -> MessageForm:
        return message_form(request, tokenizer)

    def with_document(
        self, request: ChatCompletionRequest, prompt: str, system: str | None
    ) -> ChatCompletionRequest:
        messages = [] if system is None else [Message.model_construct(role="system", content=system)]
        messages.append(Message.model_construct(role="user", content=prompt))
        return request.model_copy(update={"messages": messages})


class Completions(TextEndpoint[CompletionRequest]):
    """`POST /v1/completions`: continue a text."""

    path: ClassVar[EndpointPath] = COMPLETIONS
    document_fields: ClassVar = {"prompt": "-"}

    def parse(self, raw: bytes | str) -> CompletionRequest:
        return parse_completion(raw)

    def has_plain_prompt(self, fields: Mapping[str, Raw]) -> bool:
        return plain_text(fields) is not None

    def requester(self, request: CompletionRequest, model: ServedModel) -> Requester:
        return self.requester_of(text_encoder(model.tokenizer, request), request, model)

    def message_form(self, request: CompletionRequest, tokenizer: ModelTokenizer) -> MessageForm:
        return MessageForm(rules=text_rules(request))

    def with_document(self, request: CompletionRequest, prompt: str, system: str | None) -> CompletionRequest:
        return request.model_copy(update={"prompt": prompt if system is None else f"{system}\n\n{prompt}"})


def _check_num_outputs(request: Request, num_prompts: int) -> None:
    num_outputs = num_prompts * request.num_choices
    if num_outputs > MAX_OUTPUTS:
        message = (
            f"{num_prompts} prompts with {request.num_choices} choices each make {num_outputs} outputs; "
            f"at most {MAX_OUTPUTS} are allowed."
        )
        raise RequestError(message, "n")
