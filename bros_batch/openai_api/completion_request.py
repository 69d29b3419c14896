"""Bodies of chat and plain completion requests: the accepted fields, and the ones that are rejected by name.

Both lanes use these models: a chat over HTTP and a line of an OpenAI batch file have the same body.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from bros_batch.openai_api.endpoints import CHAT_COMPLETIONS, COMPLETIONS, ENDPOINTS, Endpoint
from bros_batch.openai_api.request_fields import (
    MAX_TOKEN_ID,
    LogitBias,
    MessageContent,
    Prompt,
    StopStrings,
    TokenId,
    Unsupported,
    only,
)
from bros_batch.openai_api.validation import RequestPart, validate
from bros_batch.request_error import RequestError
from engine.wire.limits import MAX_CHOICES


class RequestedSlo(RequestPart):
    """The SLO that a request asks for, in milliseconds."""

    ttft_ms: float = Field(gt=0, le=3_600_000)
    tpot_ms: float = Field(gt=0, le=3_600_000)


class StreamOptions(RequestPart):
    """Options of a streamed response."""

    include_usage: bool = False
    include_obfuscation: Any = None


class Message(RequestPart):
    """One message of a chat.

    Clients send earlier answers back as they received them; the additional fields of those are accepted and ignored.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: MessageContent
    name: str | None = None
    refusal: Any = None
    annotations: Any = None
    reasoning_content: Any = None
    audio: Unsupported = None
    function_call: Unsupported = None
    tool_calls: Annotated[Any, only([])] = None

    def as_template_input(self) -> dict[str, str]:
        """Return the message as chat templates read it: they know `system`, not its newer name `developer`."""
        role = "system" if self.role == "developer" else self.role
        message = {"role": role, "content": self.content}
        return message if self.name is None else {**message, "name": self.name}


class BaseRequest(RequestPart):
    """Fields that chat and plain completions share."""

    model: str = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stop: StopStrings = ()
    # Further choices use the seeds that follow, and all of them must fit into 64 bits.
    seed: int | None = Field(None, ge=-(2**63), lt=2**63 - MAX_CHOICES)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: LogitBias = Field(default_factory=dict)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # vLLM's additions.
    top_k: int | None = Field(None, ge=-1, le=MAX_TOKEN_ID)
    min_p: float | None = Field(None, ge=0, le=1)
    min_tokens: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    stop_token_ids: list[TokenId] | None = Field(None, max_length=1024)
    ignore_eos: bool | None = None
    priority: int | None = Field(None, ge=-1_000_000, le=1_000_000)

    # SLO and lane.
    slo: RequestedSlo | None = None
    service_tier: Literal["auto", "default", "flex", "priority", "scale"] | None = None

    # Accepted, without effect.
    user: Any = None
    metadata: Any = None
    store: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None

    # Not supported yet.
    response_format: Annotated[Any, only({"type": "text"})] = None
    guided_json: Unsupported = None
    guided_regex: Unsupported = None
    guided_choice: Unsupported = None
    guided_grammar: Unsupported = None
    structured_outputs: Unsupported = None

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def requested_max_tokens(self) -> int | None:
        return self.max_tokens


class ChatCompletionRequest(BaseRequest):
    """Body of `POST /v1/chat/completions`."""

    endpoint: ClassVar[Endpoint] = CHAT_COMPLETIONS
    prompt_param: ClassVar[str] = "messages"

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    chat_template_kwargs: dict[str, Any] | None = None

    parallel_tool_calls: Any = None
    tool_choice: Annotated[Any, only("none", "auto")] = None
    modalities: Annotated[Any, only(["text"])] = None
    tools: Annotated[Any, only([])] = None
    functions: Annotated[Any, only([])] = None
    function_call: Annotated[Any, only("none", "auto")] = None
    audio: Unsupported = None
    prediction: Unsupported = None
    reasoning_effort: Unsupported = None
    verbosity: Unsupported = None
    moderation: Unsupported = None
    web_search_options: Unsupported = None

    @property
    def requested_max_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        """Number of most likely tokens to report per position, besides the sampled one; None for no logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def num_prompt_chars(self) -> int:
        return sum(len(message.content) for message in self.messages)


class CompletionRequest(BaseRequest):
    """Body of `POST /v1/completions`."""

    endpoint: ClassVar[Endpoint] = COMPLETIONS
    prompt_param: ClassVar[str] = "prompt"

    prompt: Prompt
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: Annotated[Any, only(1)] = None
    echo: Annotated[Any, only(False)] = None
    suffix: Annotated[Any, only("")] = None

    @property
    def num_logprobs(self) -> int | None:
        """As for a chat request."""
        return self.logprobs

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """The prompts, each either text or token ids."""
        prompt = self.prompt
        has_several = isinstance(prompt, list) and not isinstance(prompt[0], int)
        return prompt if has_several else [prompt]

    @property
    def num_prompt_chars(self) -> int:
        """Characters of the prompts that are text; token ids need no tokenizer."""
        return sum(len(prompt) for prompt in self.prompts if isinstance(prompt, str))


Request = ChatCompletionRequest | CompletionRequest


def parse_body(endpoint: str, raw: bytes | str) -> Request:
    """Parse the JSON in `raw` as a request to `endpoint`. Raises RequestError, which names the first invalid field."""
    model: type[ChatCompletionRequest] | type[CompletionRequest]
    if endpoint == CHAT_COMPLETIONS:
        model = ChatCompletionRequest
    elif endpoint == COMPLETIONS:
        model = CompletionRequest
    else:
        raise RequestError(f"The endpoint {endpoint!r} is not one of {', '.join(ENDPOINTS)}.", "endpoint")
    request = validate(model, raw)
    if isinstance(request, ChatCompletionRequest) and request.top_logprobs and not request.logprobs:
        raise RequestError("'top_logprobs' requires 'logprobs' to be true.", "top_logprobs")
    if request.stream_options is not None and not request.stream:
        raise RequestError("'stream_options' is only allowed with 'stream' set to true.", "stream_options")
    if (request.min_tokens or 0) > (request.requested_max_tokens or MAX_TOKEN_ID):
        raise RequestError("'min_tokens' is greater than the maximum number of tokens.", "min_tokens")
    return request
