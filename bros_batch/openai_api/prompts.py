"""Token ids of a request's prompts."""

from __future__ import annotations

from bros_batch.openai_api.completion_request import ChatCompletionRequest, Request
from bros_batch.openai_api.message import template_messages
from bros_batch.text.tokenizer import ModelTokenizer
from bros_batch.text.tool_calls.formats import MISTRAL


def encode_prompts(tokenizer: ModelTokenizer, request: Request) -> list[list[int]]:
    """Return the token ids of each prompt of `request`: one for a chat, one or more for a plain completion."""
    if isinstance(request, ChatCompletionRequest):
        messages = template_messages(request.messages, with_short_ids=tokenizer.call_format is MISTRAL)
        tools = [tool.as_template_input() for tool in request.tools or ()]
        if request.choice.mode == "none" and not tokenizer.supports_tools:
            tools = []
        return [tokenizer.encode_chat(messages, request.template_kwargs, tools, request.render_options)]
    with_special = request.add_special_tokens is not False
    return [tokenizer.encode_prompt(prompt, add_special_tokens=with_special) for prompt in request.prompts]


def truncated(request: Request, token_ids: list[int], max_model_len: int) -> list[int]:
    """Return the end of a prompt that `truncate_prompt_tokens` asks for: so many tokens, or for -1 as many as leave
    room for the output."""
    most = request.truncate_prompt_tokens
    if most is None:
        return token_ids
    if most == -1:
        most = max(max_model_len - (request.requested_max_tokens or 1), 1)
    return token_ids[-most:]


def unused_template_kwargs(tokenizer: ModelTokenizer, request: Request) -> list[str]:
    """Return the parameters of `request` that this model's chat template does not read."""
    if not isinstance(request, ChatCompletionRequest):
        return []
    unused = request.template_kwargs.keys() - tokenizer.template_variables
    inner = request.chat_template_kwargs or {}
    return [f"chat_template_kwargs.{name}" if name in inner else name for name in sorted(unused)]
