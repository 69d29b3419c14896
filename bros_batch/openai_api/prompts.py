"""Token ids of a request's prompts."""

from __future__ import annotations

from bros_batch.openai_api.completion_request import ChatCompletionRequest, Request
from bros_batch.text.tokenizer import ModelTokenizer


def encode_prompts(tokenizer: ModelTokenizer, request: Request) -> list[list[int]]:
    """Return the token ids of each prompt of `request`: one for a chat, one or more for a plain completion."""
    if isinstance(request, ChatCompletionRequest):
        messages = [message.as_template_input() for message in request.messages]
        return [tokenizer.encode_chat(messages, request.chat_template_kwargs)]
    return [tokenizer.encode_prompt(prompt) for prompt in request.prompts]
