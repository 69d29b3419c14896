"""The body of a plain completion: over HTTP, and in a line of an OpenAI batch file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from bros_batch.openai_api.chat_request import ChatCompletionRequest
from bros_batch.openai_api.endpoints import COMPLETIONS, EndpointPath
from bros_batch.openai_api.request_fields import Prompt, TextLogprobs, Unsupported
from bros_batch.openai_api.served_request import CHARS_PER_PROMPT
from bros_batch.openai_api.text_request import TextRequest, checked
from bros_batch.openai_api.validation import validate


class CompletionRequest(TextRequest):
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


def parse_completion(raw: bytes | str) -> CompletionRequest:
    """Parse the JSON of a body. Raises RequestError, which names the first invalid field."""
    return checked(validate(CompletionRequest, raw))
