"""Sampling parameters of requests that do not set their own: the model's, unless the settings say otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from bros_batch.openai_api.endpoints import COMPLETIONS, EndpointPath
from bros_batch.settings import Settings

# As in OpenAI's API and in vLLM.
COMPLETION_TOKENS = 16
UNLIMITED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """The defaults of a service, for both lanes. `chat_tokens` and `completion_tokens` limit the output of the two
    endpoints; None means that only the context length does."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    chat_tokens: int | None = None
    completion_tokens: int | None = COMPLETION_TOKENS

    def max_tokens(self, endpoint: EndpointPath) -> int:
        """Return the limit of an output, before it is fitted to the context length."""
        limit = self.completion_tokens if endpoint == COMPLETIONS else self.chat_tokens
        return UNLIMITED if limit is None else limit

    def as_json(self) -> dict[str, float | None]:
        """Return the defaults as `/v1/models` reports them."""
        return asdict(self)


def sampling_defaults(settings: Settings, recommended: Mapping[str, float]) -> SamplingDefaults:
    """Return the defaults by the settings and by what the model recommends (`text.generation_config`).

    As in vLLM, a model recommends an output limit for chats only. That of the settings precedes it, and holds for both.
    """
    named = dict(recommended) if settings.generation_config == "auto" else {}
    chat_tokens = named.pop("max_tokens", None)
    limit = settings.default_max_tokens
    if limit is None and chat_tokens is not None:
        limit = int(chat_tokens)
    return SamplingDefaults(
        **{name: float(value) for name, value in named.items() if name != "top_k"},
        top_k=max(int(named.get("top_k", 0)), 0),
        chat_tokens=limit,
        completion_tokens=settings.default_max_tokens or COMPLETION_TOKENS,
    )
