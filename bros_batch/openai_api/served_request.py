"""The fields that requests to all endpoints share: the model, and how urgent the request is."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from bros_batch.openai_api.endpoints import EndpointPath
from bros_batch.openai_api.request_fields import WholeNumber
from bros_batch.openai_api.validation import LenientPart, RequestPart
from bros_batch.request_error import RequestError
from engine.wire.limits import SLOWDOWN_RANGE

# What each prompt of a request costs by itself, in characters that are tokenized in the same time.
CHARS_PER_PROMPT = 100


class RequestedSlo(RequestPart):
    """The SLO that a request asks for: two times in milliseconds, or the slowdown that bulk may cause."""

    ttft_ms: float | None = Field(None, gt=0, le=3_600_000)
    tpot_ms: float | None = Field(None, gt=0, le=3_600_000)
    slowdown: float | None = Field(None, ge=SLOWDOWN_RANGE.least, le=SLOWDOWN_RANGE.most)

    @model_validator(mode="after")
    def _check_one_kind(self) -> Self:
        times = {"slo.ttft_ms": self.ttft_ms, "slo.tpot_ms": self.tpot_ms}
        if self.slowdown is not None:
            if any(value is not None for value in times.values()):
                text = (
                    "'slo' has both a slowdown and times; give either 'slowdown', or 'ttft_ms' and 'tpot_ms'."
                )
                raise RequestError(text, "slo.slowdown")
            return self
        for param, value in times.items():
            if value is None:
                text = f"Missing required parameter: '{param}' ('slo' takes 'ttft_ms' and 'tpot_ms', or 'slowdown')."
                raise RequestError(text, param)
        return self


class ServedRequest(LenientPart):
    """Base of the bodies of all endpoints. `prompt_param` is the field that holds the prompt."""

    endpoint: ClassVar[EndpointPath]
    prompt_param: ClassVar[str]

    model: str = Field(min_length=1)
    slo: RequestedSlo | None = None
    service_tier: Literal["auto", "default", "flex", "priority", "scale"] | None = None
    priority: WholeNumber | None = Field(None, ge=-1_000_000, le=1_000_000)

    @property
    def num_choices(self) -> int:
        """Number of outputs per prompt."""
        return 1

    def field_of(self, engine_param: str | None) -> str | None:
        """Return the field of the body that became a parameter of the engine's request."""
        return self.prompt_param if engine_param in (None, "token_ids") else engine_param

    @property
    def has_schema(self) -> bool:
        """Whether the answer follows a JSON schema."""
        return False

    @property
    def is_streamed(self) -> bool:
        """Whether the response is to be a stream of events."""
        return False

    @property
    def shows_prompt(self) -> bool:
        """Whether the response depends on the prompt itself, besides what the engine returns."""
        return False

    @property
    def num_prompt_chars(self) -> int:
        """Number of characters to tokenize, and of tokens that need no tokenizer: how much work the request is before
        it reaches the engine. Everything counts that a client can make long."""
        raise NotImplementedError
