"""`POST /v1/responses` as an endpoint: a chat whose body and answer are written differently."""

from __future__ import annotations

import re
from typing import ClassVar

from bros_batch.openai_api import completion_response
from bros_batch.openai_api.chat_request import ChatCompletionRequest
from bros_batch.openai_api.completion_response import Json
from bros_batch.openai_api.endpoint import Endpoint, Outcome, Responder, ServedModel
from bros_batch.openai_api.endpoints import CHAT_COMPLETIONS, RESPONSES, EndpointPath
from bros_batch.openai_api.engine_requests import EngineRequests
from bros_batch.openai_api.message import Message
from bros_batch.openai_api.responses.input_items import normalized_items
from bros_batch.openai_api.responses.response_object import ResponseHead, response_object
from bros_batch.openai_api.responses.response_request import (
    ResponseRequest,
    parse_response_body,
    response_request,
)
from bros_batch.openai_api.responses.response_writer import written_response
from bros_batch.openai_api.sampling import lane_of, sampling_of
from bros_batch.openai_api.text_endpoints import ChatCompletions
from bros_batch.request_error import RequestError

TOO_LONG = "context_length_exceeded"
RESPONSE_ID = re.compile(r"resp_[0-9a-f]{48}")


class Responses(ChatCompletions):
    """`POST /v1/responses`: generate what follows in a conversation.

    What it parses are requests that need nothing but themselves.
    """

    path: ClassVar[EndpointPath] = RESPONSES
    document_fields: ClassVar = {"input": "-"}

    def parse(self, raw: bytes | str) -> ResponseRequest:
        body = parse_response_body(raw)
        if body.previous_response_id is not None:
            message = "'previous_response_id' is not for batches: send the conversation as 'input'."
            raise RequestError(message, "previous_response_id")
        if body.background:
            raise RequestError("'background' is not for batches: all of their lines run in it.", "background")
        return response_request(body, normalized_items(body.input, "line"))

    def with_document(
        self, request: ChatCompletionRequest, prompt: str, system: str | None
    ) -> ChatCompletionRequest:
        assert isinstance(request, ResponseRequest)
        instructions = "\n\n".join(filter(None, (request.body.instructions, system)))
        messages = [Message.model_construct(role="system", content=instructions)] if instructions else []
        messages.append(Message.model_construct(role="user", content=prompt))
        return request.model_copy(update={"messages": messages})

    def engine_requests(self, request: ChatCompletionRequest, model: ServedModel) -> EngineRequests:
        """As for a chat. With `truncation: "auto"`, a conversation that is too long loses its beginning, but not its
        system message, up to a message of the user from which on it fits."""
        assert isinstance(request, ResponseRequest)
        try:
            return super().engine_requests(request, model)
        except RequestError as error:
            if error.code != TOO_LONG or request.body.truncation != "auto":
                raise
            too_long = error
        messages = request.messages
        num_kept = 1 if messages[0].role in ("system", "developer") else 0
        starts = [n for n, message in enumerate(messages) if message.role == "user" and n > num_kept]
        fitting: EngineRequests | None = None
        low, high = 0, len(starts)
        while low < high:
            middle = (low + high) // 2
            rest = [*messages[:num_kept], *messages[starts[middle] :]]
            try:
                fitting = super().engine_requests(request.model_copy(update={"messages": rest}), model)
                high = middle
            except RequestError as error:
                if error.code != TOO_LONG:
                    raise
                low = middle + 1
        if fitting is None:
            raise too_long
        return fitting

    # Its input is more than messages.
    has_plain_prompt = Endpoint.has_plain_prompt
    requester = Endpoint.requester

    def responder(self, request: ChatCompletionRequest, model: ServedModel) -> Responder:
        assert isinstance(request, ResponseRequest)
        respond_as_chat = super().responder(request, model)

        def respond(head: completion_response.ResponseHead, outcome: Outcome) -> Json:
            chat_head = completion_response.ResponseHead(
                CHAT_COMPLETIONS, head.request_id, head.model, head.created
            )
            begun = begun_response(head, request, model)
            return written_response(begun, respond_as_chat(chat_head, outcome), head.created)

        return respond


def begun_response(
    head: completion_response.ResponseHead, request: ResponseRequest, model: ServedModel
) -> Json:
    """Return a response that has no output yet."""
    waits = lane_of(request) == "be"
    own = ResponseHead(_response_id(head, request), head.model, head.created, waits, is_stored=False)
    return response_object(own, request, sampling_of(request, model.defaults))


def _response_id(head: completion_response.ResponseHead, request: ResponseRequest) -> str:
    """Return the id of a new response, or that which the item of a response in the background has."""
    if RESPONSE_ID.fullmatch(head.request_id):
        return head.request_id
    given = request.request_id
    if isinstance(given, str) and RESPONSE_ID.fullmatch(given):
        return given
    return "resp_" + head.request_id.removeprefix("req_")
