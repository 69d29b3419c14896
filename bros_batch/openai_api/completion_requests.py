"""Bodies of completion requests: what is accepted, what is refused by name, and what it means to the engine.

Both lanes use this: a chat request over HTTP and a line of a batch file are the same body.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
from engine.wire.protocol import LaneName, Sampling, Slo

ENDPOINTS = ("/v1/chat/completions", "/v1/completions")

MAX_CHOICES = 128


class RequestError(ValueError):
    """A request that cannot be served as it stands. `message` is one sentence; `param` names the field."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class RequestPart(BaseModel):
    """Strict, closed to unknown fields, finite numbers only."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


class SloTarget(RequestPart):
    """The service level a request asks for, in milliseconds."""

    ttft_ms: float = Field(gt=0, le=3_600_000)
    tpot_ms: float = Field(gt=0, le=3_600_000)


class StreamOptions(RequestPart):
    include_usage: bool = False
    include_obfuscation: Any = None


class Message(RequestPart):
    """One turn of a chat. The fields a client copies from an earlier answer are accepted and dropped."""

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
        """What chat templates see; `developer` is the newer word for `system`, which templates know."""
        role = "system" if self.role == "developer" else self.role
        turn = {"role": role, "content": self.content}
        return turn if self.name is None else {**turn, "name": self.name}


class BaseRequest(RequestPart):
    """What chat and plain completions share."""

    model: str = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stop: StopStrings = ()
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

    slo: SloTarget | None = None
    service_tier: Literal["auto", "default", "flex", "priority", "scale"] | None = None

    # Of no effect here.
    user: Any = None
    metadata: Any = None
    store: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None

    # Known, not served yet.
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
        """None: no logprobs; k: those of the tokens drawn, and of the k likeliest at each place."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(BaseRequest):
    """Body of `POST /v1/completions`."""

    prompt: Prompt
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: Annotated[Any, only(1)] = None
    echo: Annotated[Any, only(False)] = None
    suffix: Annotated[Any, only("")] = None

    @property
    def num_logprobs(self) -> int | None:
        """As of a chat request."""
        return self.logprobs


Request = ChatCompletionRequest | CompletionRequest
PartT = TypeVar("PartT", bound=BaseModel)


def parse_body(endpoint: str, raw: bytes | str) -> Request:
    """The request in `raw` JSON for `endpoint`; RequestError names the first field at fault."""
    model: type[ChatCompletionRequest] | type[CompletionRequest]
    if endpoint == "/v1/chat/completions":
        model = ChatCompletionRequest
    elif endpoint == "/v1/completions":
        model = CompletionRequest
    else:
        raise RequestError(f"The endpoint {endpoint!r} is not one of {', '.join(ENDPOINTS)}.", "endpoint")
    request = validate(model, raw)
    if isinstance(request, ChatCompletionRequest) and request.top_logprobs and not request.logprobs:
        raise RequestError("'top_logprobs' needs 'logprobs' to be true.", "top_logprobs")
    if request.stream_options is not None and not request.stream:
        raise RequestError("'stream_options' is for requests with 'stream' set to true.", "stream_options")
    if (request.min_tokens or 0) > (request.requested_max_tokens or MAX_TOKEN_ID):
        raise RequestError("'min_tokens' is greater than the maximum number of tokens.", "min_tokens")
    return request


def validate(model: type[PartT], raw: bytes | str) -> PartT:
    """`raw` JSON as `model`; the first thing wrong with it as a RequestError."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise _request_error(error) from None


def _request_error(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False)[0]
    kind, message = first["type"], first["msg"]
    if kind == "json_invalid":
        return RequestError(f"The body is not valid JSON: {message.removeprefix('Invalid JSON: ')}.")
    steps = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    param = "".join(steps).removeprefix(".")
    if not param:
        return RequestError("The body must be a JSON object.")
    if kind == "extra_forbidden":
        return RequestError(f"Unknown parameter: '{param}'.", param)
    if kind == "missing":
        return RequestError(f"Missing required parameter: '{param}'.", param)
    if kind == "request":
        return RequestError(f"'{param}' {message}.", param)
    return RequestError(f"Invalid '{param}': {_rephrased(message)}{_shown(first.get('input'))}.", param)


def _rephrased(message: str) -> str:
    return (message[:1].lower() + message[1:]).replace(" after validation", "")


def _shown(value: object) -> str:
    return f", but got {value!r}" if isinstance(value, int | float | bool) else ""


def sampling_of(request: Request, default_max_tokens: int) -> Sampling:
    """How the engine draws tokens for `request`."""
    return Sampling(
        max_tokens=request.requested_max_tokens or default_max_tokens,
        min_tokens=request.min_tokens or 0,
        temperature=_or(request.temperature, 1.0),
        top_p=_or(request.top_p, 1.0),
        top_k=max(request.top_k or 0, 0),
        min_p=request.min_p or 0.0,
        seed=request.seed,
        stop=request.stop,
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
        repetition_penalty=_or(request.repetition_penalty, 1.0),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=tuple(request.logit_bias.items()),
        logprobs=request.num_logprobs,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def fitted_sampling(
    request: Request, num_prompt_tokens: int, *, max_model_len: int, default_max_tokens: int
) -> Sampling:
    """`sampling_of` with the default length cut to the room left. RequestError `context_length_exceeded` when
    the prompt, or the prompt and the length asked for, is too long for the model."""
    param = "messages" if isinstance(request, ChatCompletionRequest) else "prompt"
    room = max_model_len - num_prompt_tokens
    if num_prompt_tokens == 0:
        raise RequestError("The prompt has no tokens.", param)
    asked = request.requested_max_tokens
    if room < 1:
        raise RequestError(
            f"This model's context length is {max_model_len} tokens, but the prompt has {num_prompt_tokens}; "
            "at least one must be left for the answer.",
            param,
            "context_length_exceeded",
        )
    if asked is not None and asked > room:
        raise RequestError(
            f"This model's context length is {max_model_len} tokens, but {num_prompt_tokens + asked} were "
            f"asked for: {num_prompt_tokens} in the prompt and {asked} for the answer.",
            param,
            "context_length_exceeded",
        )
    sampling = sampling_of(request, min(default_max_tokens, room))
    if sampling.min_tokens > sampling.max_tokens:
        raise RequestError("'min_tokens' is greater than the maximum number of tokens.", "min_tokens")
    return sampling


def lane_of(request: Request) -> LaneName:
    """RT, unless the request says that it can wait."""
    return "be" if request.service_tier == "flex" or (request.priority or 0) > 0 else "rt"


def slo_of(request: Request) -> Slo | None:
    target = request.slo
    return None if target is None else Slo(ttft_s=target.ttft_ms / 1000, tpot_s=target.tpot_ms / 1000)
