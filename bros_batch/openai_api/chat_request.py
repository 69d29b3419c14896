"""The body of a chat: over HTTP, and in a line of an OpenAI batch file."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from bros_batch.openai_api.endpoints import CHAT_COMPLETIONS, EndpointPath
from bros_batch.openai_api.message import Message
from bros_batch.openai_api.request_fields import (
    NOTHING,
    ChatLogprobs,
    Ignored,
    OutputLimit,
    TemplateKwargs,
    Unsupported,
    WholeNumber,
    only,
    refused,
)
from bros_batch.openai_api.text_request import TextRequest, checked
from bros_batch.openai_api.tools.definitions import (
    AUTO,
    MAX_TOOLS,
    LegacyFunctions,
    Tool,
    ToolChoice,
    ToolChoiceField,
    check_tool_choice,
)
from bros_batch.openai_api.validation import validate
from bros_batch.request_error import RequestError
from bros_batch.text.chat_template import RenderOptions


class ChatCompletionRequest(TextRequest):
    """Body of `POST /v1/chat/completions`."""

    endpoint: ClassVar[EndpointPath] = CHAT_COMPLETIONS
    prompt_param: ClassVar[str] = "messages"

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: OutputLimit = Field(None, ge=1)
    logprobs: ChatLogprobs = None
    top_logprobs: WholeNumber | None = Field(None, ge=0, le=20)
    chat_template_kwargs: TemplateKwargs = None
    reasoning_effort: str | None = Field(None, max_length=64)
    verbosity: str | None = Field(None, max_length=64)

    include_reasoning: bool | None = None

    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolChoiceField = None
    parallel_tool_calls: bool | None = None
    functions: LegacyFunctions = None
    function_call: LegacyFunctions = None

    modalities: Annotated[Any, only(["text"], *NOTHING)] = None
    audio: Unsupported = None
    echo: Unsupported = None
    moderation: Unsupported = None
    web_search_options: Unsupported = None
    chat_template: Annotated[Any, refused("the template is the model's")] = None

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    documents: list[dict[str, Any]] | None = None

    prediction: Ignored = None  # it makes some servers faster
    mm_processor_kwargs: Ignored = None

    @property
    def requested_max_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        """Number of most likely tokens to report per position, besides the sampled one; None for no logprobs."""
        return None if self.logprobs is None else max(self.logprobs, self.top_logprobs or 0)

    @property
    def render_options(self) -> RenderOptions:
        """How the messages become a prompt. A message that is to be continued has no answer yet."""
        continues = bool(self.continue_final_message)
        begins = not continues if self.add_generation_prompt is None else self.add_generation_prompt
        return RenderOptions(begins, continues, bool(self.add_special_tokens), self.documents or None)

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """What the request sets in the chat template."""
        named = {"reasoning_effort": self.reasoning_effort, "verbosity": self.verbosity}
        given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
        if self.reasoning_effort == "none":
            given["enable_thinking"] = False  # as templates that can turn reasoning off call it
        return {**given, **(self.chat_template_kwargs or {})}

    @model_validator(mode="after")
    def _choice_is_among_tools(self) -> Self:
        check_tool_choice(self.tools or (), self.choice)
        return self

    @property
    def choice(self) -> ToolChoice:
        """Which of the tools may or must be called."""
        chosen: ToolChoice | None = self.tool_choice
        return chosen or AUTO

    @property
    def callable_tools(self) -> list[Tool]:
        """The tools that the model may call."""
        names = self.choice.names
        if self.choice.mode == "none":
            return []
        return [tool for tool in self.tools or () if names is None or tool.function.name in names]

    @property
    def num_prompt_chars(self) -> int:
        of_documents = sum(
            len(str(value)) for document in self.documents or () for value in document.values()
        )
        of_tools = sum(tool.num_chars for tool in self.tools or ())
        return of_documents + of_tools + sum(message.num_chars for message in self.messages)


def parse_chat(raw: bytes | str) -> ChatCompletionRequest:
    """Parse the JSON of a body. Raises RequestError, which names the first invalid field."""
    request = checked(validate(ChatCompletionRequest, raw))
    if request.continue_final_message and request.add_generation_prompt:
        raise RequestError(
            "'continue_final_message' continues the last message, and 'add_generation_prompt' begins another: send one "
            "of them.",
            "continue_final_message",
        )
    if request.top_logprobs and request.logprobs is None:
        raise RequestError("'top_logprobs' requires 'logprobs' to be true.", "top_logprobs")
    return request
