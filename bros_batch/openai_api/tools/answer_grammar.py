"""The grammar of a whole answer: of what follows the reasoning, and of calls beside the shape that the text has."""

from __future__ import annotations

from collections.abc import Sequence

from bros_batch.openai_api.grammars import schema_grammar
from bros_batch.openai_api.tools.call_grammar import (
    OfferedTool,
    call_rules,
    calls_as_schemas,
    guarantees_calls,
    offered_tools,
)
from bros_batch.openai_api.tools.definitions import Tool, ToolChoice
from bros_batch.openai_api.tools.lark_text import embedded, mark, text_without
from bros_batch.request_error import RequestError
from bros_batch.text.reasoning import ReasoningMarks, ReasoningPhase
from bros_batch.text.tokenizer import ModelTokenizer
from bros_batch.text.tool_calls.formats import CallFormat
from engine.wire.request_terms import MAX_GRAMMAR_CHARS, Grammar


def answer_grammar(
    tokenizer: ModelTokenizer,
    shape: Grammar | None,
    tools: Sequence[Tool],
    choice: ToolChoice,
    phase: ReasoningPhase,
    *,
    is_single: bool = False,
) -> Grammar | None:
    """Return the grammar of an answer whose text has `shape` and which may or must call tools.

    `phase` is where the output begins. With `is_single`, there is at most one call. Raises RequestError for arguments
    that no grammar can enforce.
    """
    offered = offered_tools(tools, choice)
    rules: list[str] = []
    if offered and (shape is not None or guarantees_calls(offered, choice)):
        must_call = choice.mode in ("required", "named")
        if (
            shape is not None
            and not must_call
            and shape.kind == "json_schema"
            and tokenizer.call_format.is_bare
        ):
            rules = [f"answer: {_shape_or_bare_call(shape, offered, choice, tokenizer.call_format)}"]
        else:
            rules = call_rules(tokenizer, offered, choice, is_single=is_single)
            if must_call:
                rules.append("answer: calls")
            elif shape is None:
                rules.append("answer: text_or_calls")
            else:
                rules += ["answer: calls | shape", f"shape: {embedded(shape)}"]
    elif shape is None:
        return None
    marks = tokenizer.reasoning_marks
    if marks is None or phase is ReasoningPhase.ANSWER:
        if not rules:
            return shape
        rules.insert(0, "start: answer")
    else:
        if not rules and shape is not None:
            rules.append(f"answer: {embedded(shape)}")
        rules += _reasoning_rules(tokenizer, marks)
        rules.insert(0, "start: reasoned" if phase is ReasoningPhase.REASONING else "start: opened | answer")
    text = "\n".join(["%llguidance {}", *rules, ""])
    if len(text) > MAX_GRAMMAR_CHARS:
        raise RequestError(
            f"The schemas of this request are longer than {MAX_GRAMMAR_CHARS:,} characters together.",
            "tools" if offered else "response_format",
        )
    return Grammar("lark", text)


def _shape_or_bare_call(
    shape: Grammar, offered: Sequence[OfferedTool], choice: ToolChoice, form: CallFormat
) -> str:
    """Return the rule for JSON that has `shape` or is one call. The two begin alike, so they are schemas both."""
    calls = calls_as_schemas(offered, choice, form)
    call = schema_grammar({"anyOf": calls}, "tools")
    return f"{embedded(shape)} | {embedded(call)}"


def _reasoning_rules(tokenizer: ModelTokenizer, marks: ReasoningMarks) -> list[str]:
    """Return the rules `reasoned`, the rest of the reasoning and the answer, and `opened`, which begins with a mark."""
    closing = mark(tokenizer, marks.closing)
    rules = [
        f"opened: {mark(tokenizer, marks.opening)} reasoned",
        r"reasoned: reasoning GAP answer",
        r"GAP: /\n{0,2}/",
    ]
    if tokenizer.added_token_id(marks.closing) is None:
        return [*rules, rf"reasoning[lazy]: REASON {closing}", r"REASON: /(?s:.*)/"]
    return [*rules, f"reasoning: REASON {closing}", f"REASON: {text_without(marks.closing)}"]
