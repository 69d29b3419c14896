"""The form of a request's outputs: what of them is reasoning, and what are tool calls."""

from __future__ import annotations

from bros_batch.openai_api.chat_request import ChatCompletionRequest
from bros_batch.openai_api.completion_request import Request
from bros_batch.text.message_form import MessageForm
from bros_batch.text.text_rules import TextRules
from bros_batch.text.tokenizer import ModelTokenizer


def message_form(request: ChatCompletionRequest, tokenizer: ModelTokenizer) -> MessageForm:
    """Return the form in which the model answers `request`."""
    tools = request.callable_tools
    return MessageForm(
        reasoning=tokenizer.reasoning_marks,
        shows_reasoning=request.include_reasoning is not False,
        calls=tokenizer.call_format if tools else None,
        tool_names=frozenset(tool.function.name for tool in tools),
        max_calls=1 if request.parallel_tool_calls is False or request.choice.mode == "named" else None,
        ends_in_calls=request.choice.mode != "named",
        rules=text_rules(request),
    )


def text_rules(request: Request) -> TextRules:
    """Return how the tokens of an output become text."""
    return TextRules(
        shows_special_tokens=request.skip_special_tokens is False,
        keeps_stop=bool(request.include_stop_str_in_output),
        names_ids=bool(request.return_tokens_as_token_ids),
    )
