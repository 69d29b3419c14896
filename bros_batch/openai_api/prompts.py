"""Token ids of a request's prompts."""

from __future__ import annotations

from bros_batch.openai_api.completion_request import ChatCompletionRequest, Request
from bros_batch.text.tokenizer import ModelTokenizer


def encode_prompts(tokenizer: ModelTokenizer, request: Request) -> list[list[int]]:
    """Return the token ids of each prompt of `request`: one for a chat, one or more for a plain completion."""
    if isinstance(request, ChatCompletionRequest):
        messages = [message.as_template_input() for message in request.messages]
        return [tokenizer.encode_chat(messages, request.template_kwargs)]
    return [tokenizer.encode_prompt(prompt) for prompt in request.prompts]


def ignored_parameters(tokenizer: ModelTokenizer, request: Request) -> list[str]:
    """Return the parameters of `request` that have no effect on this server, or not with this model's chat template."""
    names = list(request.ignored_names())
    if isinstance(request, ChatCompletionRequest):
        unused = request.template_kwargs.keys() - tokenizer.template_variables
        inner = request.chat_template_kwargs or {}
        names += [f"chat_template_kwargs.{name}" if name in inner else name for name in sorted(unused)]
    return names
