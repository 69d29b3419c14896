"""Fields that the bodies of chats and completions share: those with an effect, and those that are rejected by name."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, TypeVar

from pydantic import Field

from bros_batch.openai_api.grammars import requested_grammar
from bros_batch.openai_api.request_fields import (
    MAX_TOKEN_ID,
    Ignored,
    LogitBias,
    OutputLimit,
    PromptLimit,
    PromptLogprobs,
    Seed,
    StopStrings,
    TokenId,
    Unsupported,
    UnsupportedUnless1,
    WholeNumber,
    refused,
)
from bros_batch.openai_api.served_request import ServedRequest
from bros_batch.openai_api.validation import LenientPart
from bros_batch.request_error import RequestError
from engine.wire.limits import MAX_CHOICES
from engine.wire.request_terms import Grammar


class StreamOptions(LenientPart):
    """Options of a streamed response."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's: usage so far in every chunk
    include_obfuscation: Ignored = None


class TextRequest(ServedRequest):
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


RequestT = TypeVar("RequestT", bound=TextRequest)


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
