"""The fields that requests to all endpoints share: the model, and how urgent the request is."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from bros_batch.openai_api.endpoints import EndpointPath
from bros_batch.openai_api.request_fields import WholeNumber
from bros_batch.openai_api.validation import LenientPart, RequestPart

# What each prompt of a request costs by itself, in characters that are tokenized in the same time.
CHARS_PER_PROMPT = 100


class RequestedSlo(RequestPart):
    """The SLO that a request asks for, in milliseconds."""

    ttft_ms: float = Field(gt=0, le=3_600_000)
    tpot_ms: float = Field(gt=0, le=3_600_000)


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
