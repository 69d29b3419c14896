"""Bodies of chat and plain completion requests: the fields with an effect, and the ones that are rejected by name.

Both lanes use these models: a chat over HTTP and a line of an OpenAI batch file have the same body.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import Field, model_validator

from bros_batch.openai_api.endpoints import CHAT_COMPLETIONS, COMPLETIONS, EndpointPath
from bros_batch.openai_api.grammars import requested_grammar
from bros_batch.openai_api.message import Message
from bros_batch.openai_api.request_fields import (
    MAX_TOKEN_ID,
    NOTHING,
    ChatLogprobs,
    Ignored,
    LogitBias,
    OutputLimit,
    Prompt,
    PromptLimit,
    PromptLogprobs,
    Seed,
    StopStrings,
    TemplateKwargs,
    TextLogprobs,
    TokenId,
    Unsupported,
    UnsupportedUnless1,
    WholeNumber,
    only,
    refused,
)
from bros_batch.openai_api.served_request import CHARS_PER_PROMPT, ServedRequest
from bros_batch.openai_api.tools.definitions import (
    AUTO,
    MAX_TOOLS,
    LegacyFunctions,
    Tool,
    ToolChoice,
    ToolChoiceField,
    check_tool_choice,
)
from bros_batch.openai_api.validation import LenientPart, validate
from bros_batch.request_error import RequestError
from bros_batch.text.chat_template import RenderOptions
from engine.wire.limits import MAX_CHOICES
from engine.wire.protocol import Grammar


class StreamOptions(LenientPart):
    """Options of a streamed response."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's: usage so far in every chunk
    include_obfuscation: Ignored = None


class BaseRequest(ServedRequest):
    """Fields that chat and plain completions share."""

    max_tokens: OutputLimit = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    n: WholeNumber | None = Field(None, ge=1, le=MAX_CHOICES)
    stop: StopStrings = ()
    seed: Seed = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: LogitBias = Field(default_factory=dict)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # vLLM's additions.
    top_k: WholeNumber | None = Field(None, ge=-1, le=MAX_TOKEN_ID)
    min_p: float | None = Field(None, ge=0, le=1)
    min_tokens: WholeNumber | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    stop_token_ids: list[TokenId] | None = Field(None, max_length=1024)
    ignore_eos: bool | None = None
    prompt_logprobs: PromptLogprobs = None

    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    request_id: Ignored = None

    # The shape of the answer; `openai_api.grammars` checks these.
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None

    best_of: UnsupportedUnless1 = None
    use_beam_search: Unsupported = None
    early_stopping: Unsupported = None
    length_penalty: UnsupportedUnless1 = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    truncate_prompt_tokens: PromptLimit = None
    return_tokens_as_token_ids: bool | None = None

    spaces_between_special_tokens: Ignored = (
        None  # only tokenizers that are written in Python have such spaces
    )

    allowed_token_ids: Annotated[Any, refused("restrict the answer by 'structured_outputs'")] = None
    bad_words: Annotated[Any, refused("give their tokens a 'logit_bias' of -100")] = None
    logits_processors: Annotated[Any, refused("requests cannot bring code")] = None
    return_token_ids: Annotated[Any, refused("send the text to /tokenize")] = None

    @cached_property
    def shape(self) -> tuple[Grammar, str] | None:
        """The grammar of the answer and the field that asks for it. Raises RequestError."""
        return requested_grammar(self)

    def field_of(self, engine_param: str | None) -> str | None:
        if engine_param == "grammar" and self.shape is not None:
            return self.shape[1]
        return super().field_of(engine_param)

    @property
    def has_schema(self) -> bool:
        """Whether `response_format` has a schema that the answer follows."""
        return self.shape is not None and self.shape[1].startswith("response_format.")

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def requested_max_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def num_prompt_logprobs(self) -> int | None:
        """Number of most likely tokens to compute per position of the prompt, besides the actual one; None for no
        log-probabilities of the prompt."""
        return self.prompt_logprobs

    @property
    def shows_prompt(self) -> bool:
        return self.num_prompt_logprobs is not None

    @property
    def is_streamed(self) -> bool:
        return bool(self.stream)


class ChatCompletionRequest(BaseRequest):
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


class CompletionRequest(BaseRequest):
    """Body of `POST /v1/completions`."""

    endpoint: ClassVar[EndpointPath] = COMPLETIONS
    prompt_param: ClassVar[str] = "prompt"

    prompt: Prompt
    logprobs: TextLogprobs = None
    echo: bool | None = None
    suffix: Unsupported = None
    add_special_tokens: bool | None = None

    @property
    def num_logprobs(self) -> int | None:
        """As for a chat request."""
        return self.logprobs

    @property
    def num_prompt_logprobs(self) -> int | None:
        # An engine request that asks for no token has to ask for something.
        echoed = self.logprobs if self.max_tokens != 0 else self.logprobs or 0
        asked = [
            number for number in (echoed if self.echo else None, self.prompt_logprobs) if number is not None
        ]
        return max(asked, default=None)

    @property
    def shows_prompt(self) -> bool:
        return bool(self.echo) or self.prompt_logprobs is not None

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """The prompts, each either text or token ids."""
        prompt = self.prompt
        has_several = isinstance(prompt, list) and not isinstance(prompt[0], int)
        return prompt if has_several else [prompt]

    @property
    def num_prompt_chars(self) -> int:
        return CHARS_PER_PROMPT * len(self.prompts) + sum(map(len, self.prompts))


Request = ChatCompletionRequest | CompletionRequest


RequestT = TypeVar("RequestT", bound=BaseRequest)


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


def parse_completion(raw: bytes | str) -> CompletionRequest:
    """As `parse_chat`, for a plain completion."""
    return checked(validate(CompletionRequest, raw))


def checked(request: RequestT) -> RequestT:
    """Return the request itself. Raises RequestError for fields that contradict each other."""
    options = request.stream_options
    if (
        options is not None
        and not request.stream
        and (options.include_usage or options.continuous_usage_stats)
    ):
        raise RequestError("'stream_options' is only allowed with 'stream' set to true.", "stream_options")
    if request.stream and request.shows_prompt:
        name = "prompt_logprobs" if request.prompt_logprobs is not None else "echo"
        raise RequestError(f"'{name}' is not supported with 'stream'.", name)
    if request.requested_max_tokens == 0 and not request.shows_prompt:
        message = "Invalid 'max_tokens': input should be greater than or equal to 1, but got 0."
        raise RequestError(message, "max_tokens")
    if (request.min_tokens or 0) > (request.requested_max_tokens or MAX_TOKEN_ID):
        raise RequestError("'min_tokens' is greater than the maximum number of tokens.", "min_tokens")
    _ = request.shape  # raises an error if there is something wrong with it
    return request
