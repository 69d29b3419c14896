"""Body of `POST /v1/responses`, and the chat request that it stands for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from pydantic import AfterValidator, ConfigDict, Field, PrivateAttr, StringConstraints

from bros_batch.openai_api.chat_request import ChatCompletionRequest
from bros_batch.openai_api.endpoints import RESPONSES, EndpointPath
from bros_batch.openai_api.request_fields import (
    NOTHING,
    Ignored,
    OutputLimit,
    Unsupported,
    is_one_of,
    problem,
)
from bros_batch.openai_api.responses.input_items import chat_messages
from bros_batch.openai_api.responses.response_tools import chat_tool_choice, chat_tools, function_tools
from bros_batch.openai_api.text_request import checked
from bros_batch.openai_api.validation import LenientPart, RequestPart, validate
from bros_batch.request_error import RequestError

Json = dict[str, Any]

MAX_ITEMS = 20_000
LOGPROBS = "message.output_text.logprobs"

# Names that chat requests have for fields of this API, which has other names for them.
CHAT_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
    "logprobs": "top_logprobs",
    "functions": "tools",
    "function_call": "tool_choice",
}
# Fields of chat requests that mean nothing here.
NOT_HERE = frozenset({"n", "modalities", "audio", "echo", "best_of"})

MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


def _input(value: Any) -> Any:
    if isinstance(value, str) or value is None:
        return value
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise problem("must be a string or a list of objects")
    if len(value) > MAX_ITEMS:
        raise problem(f"must have at most {MAX_ITEMS:,} items, not {len(value):,}")
    return value


class TextFormat(LenientPart):
    """The form of the answer: text, a JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class TextOptions(LenientPart):
    """The form and the verbosity of the answer."""

    format: TextFormat | None = None
    verbosity: str | None = Field(None, max_length=64)


class ReasoningOptions(LenientPart):
    """How long the model may think. This server does not summarize what it thought, it returns it."""

    effort: str | None = Field(None, max_length=64)
    summary: Ignored = None
    generate_summary: Ignored = None
    context: Ignored = None


class ResponseBody(RequestPart):
    """Body of `POST /v1/responses`.

    Fields that are not declared here have the names and meanings that they have in a chat request, and are judged
    there: sampling parameters, lane, SLO.
    """

    model_config = ConfigDict(extra="allow")

    model: str = Field(min_length=1)
    input: Annotated[Any, AfterValidator(_input)] = None
    instructions: str | None = None
    max_output_tokens: OutputLimit = Field(None, ge=1)
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    include: list[str] | None = Field(None, max_length=64)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=16)

    previous_response_id: str | None = Field(None, max_length=64)
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: Any = None

    max_tool_calls: Ignored = None
    prompt_cache_options: Ignored = None
    access_programs: Ignored = None
    image: Ignored = None

    conversation: Unsupported = None
    prompt: Unsupported = None
    context_management: Unsupported = None
    moderation: Unsupported = None

    @property
    def is_stored(self) -> bool:
        return self.store is not False

    @property
    def runs_as_chat(self) -> bool:
        """Whether a response in the background does not wait for its turn as bulk."""
        return (self.model_extra or {}).get("service_tier") == "priority"

    @property
    def shown_tools(self) -> list[Json]:
        """The tools as the response object repeats them."""
        return function_tools(self.tools or ())

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)


class ResponseRequest(ChatCompletionRequest):
    """The chat request that a response's body stands for. Errors name the fields of the body."""

    endpoint: ClassVar[EndpointPath] = RESPONSES
    prompt_param: ClassVar[str] = "input"

    _body: ResponseBody = PrivateAttr()

    @property
    def body(self) -> ResponseBody:
        """The body as it was sent."""
        return self._body

    @property
    def is_streamed(self) -> bool:
        return bool(self.body.stream)

    def ignored_names(self) -> Iterator[str]:
        for name in super().ignored_names():
            yield renamed(name)
        for name in ("max_tool_calls", "prompt_cache_options", "access_programs", "image"):
            if getattr(self.body, name) is not None:
                yield name
        for prefix, options in self._options():
            for name in options.ignored_names():
                yield prefix + name

    def unknown_names(self) -> Iterator[str]:
        yield from super().unknown_names()
        for prefix, options in self._options():
            for name in options.unknown_names():
                yield prefix + name

    def _options(self) -> Iterator[tuple[str, LenientPart]]:
        for name in ("text", "reasoning"):
            options = getattr(self.body, name)
            if options is not None:
                yield f"{name}.", options


def parse_response_body(raw: bytes | str) -> ResponseBody:
    """Parse the JSON in `raw`. Raises RequestError, which names the first invalid field."""
    body = validate(ResponseBody, raw)
    for name, value in (body.model_extra or {}).items():
        if name in CHAT_NAMES and value is not None:
            message = f"Unknown parameter: '{name}'. The Responses API has '{CHAT_NAMES[name]}' instead."
            raise RequestError(message, name)
        if name in NOT_HERE and not is_one_of(value, (*NOTHING, 1)):
            raise RequestError(f"Unknown parameter: '{name}'.", name)
    if body.input is None:
        raise RequestError("Missing required parameter: 'input'.", "input")
    if body.background and body.store is False:
        raise RequestError("'background' needs a stored response: leave out 'store: false'.", "background")
    return body


def response_request(body: ResponseBody, items: Sequence[Json]) -> ResponseRequest:
    """Return the chat request for a conversation of normalized items, the last of which are the body's own.

    Raises RequestError, which names the first invalid field of the body.
    """
    try:
        request = validate(ResponseRequest, msgspec.json.encode(_chat_body(body, items)))
        checked(request)
    except RequestError as error:
        name = renamed(error.param or "")
        message = error.message.replace(f"'{error.param}'", f"'{name}'")
        raise RequestError(message, name or None, error.code) from None
    request._body = body
    return request


def _chat_body(body: ResponseBody, items: Sequence[Json]) -> Json:
    tools = body.shown_tools
    tool_choice, tools_left = chat_tool_choice(body.tool_choice, tools)
    text, reasoning = body.text or TextOptions(), body.reasoning or ReasoningOptions()
    extra = body.model_extra or {}
    named: Json = {
        **{name: value for name, value in extra.items() if name not in CHAT_NAMES and name not in NOT_HERE},
        "model": body.model,
        "messages": chat_messages(items, body.instructions),
        "max_completion_tokens": body.max_output_tokens,
        "response_format": _response_format(text.format),
        "verbosity": text.verbosity,
        "reasoning_effort": reasoning.effort,
        "tools": chat_tools(tools_left) or None,
        "tool_choice": tool_choice,
    }
    if body.wants_logprobs:
        named |= {"logprobs": True, "top_logprobs": body.top_logprobs or 0}
    return {name: value for name, value in named.items() if value is not None}


def _response_format(format: TextFormat | None) -> Json | None:
    if format is None or format.type == "text":
        return None
    if format.type == "json_object":
        return {"type": "json_object"}
    schema = {
        "name": format.name,
        "description": format.description,
        "strict": format.strict,
        "schema": format.schema_,
    }
    named = {name: value for name, value in schema.items() if value is not None}
    return {"type": "json_schema", "json_schema": named}


def renamed(param: str) -> str:
    """Return the name of a chat request's field in the body of a response."""
    if param.startswith("messages"):
        return "input"  # items and messages are not numbered alike
    if param.startswith("tools["):
        return param.replace("].function.", "].", 1).replace("].function", "]", 1)
    if param.startswith("response_format.json_schema"):
        return "text.format" + param.removeprefix("response_format.json_schema")
    head, dot, rest = param.partition(".")
    return CHAT_NAMES.get(head, head) + dot + rest if head != "logprobs" else "include"
