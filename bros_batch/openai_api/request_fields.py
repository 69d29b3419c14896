"""Field types of completion requests, with their validation.

A check raises `problem(predicate)`, where the predicate completes a sentence that begins with the name of the field:
"'stop' must be ...".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from engine.wire.limits import MAX_CHOICES, MAX_LOGPROBS
from engine.wire.request_terms import MAX_STOP_CHARS, MAX_STOP_STRINGS

MAX_TOKEN_ID = 2**31 - 1
MAX_TEMPLATE_KWARGS_CHARS = 64 * 1024
# Further choices use the seeds that follow, and all of them must fit into 64 bits.
SEEDS = range(-(2**63), 2**63 - MAX_CHOICES)
NOTHING: tuple[object, ...] = (None, False, "", [], {})


def problem(message: str) -> PydanticCustomError:
    # Pydantic would read braces in the message as placeholders.
    return PydanticCustomError("request", "{message}", {"message": message})


class IgnoredField:
    """Marks a field that is accepted with any value and has no effect."""


def is_one_of(value: object, values: Iterable[object]) -> bool:
    """Return whether `values` holds the same value of the same type, so that 0 is not false."""
    return any(type(value) is type(each) and value == each for each in values)


@dataclass(frozen=True)
class HarmlessOnly(AfterValidator):
    """Marks a field that is known but not supported; `harmless` are the values that ask for nothing."""

    harmless: tuple[object, ...] = ()


def only(*harmless: object, hint: str = "") -> HarmlessOnly:
    """Accept only null and `harmless` values in a field that is known but not supported. `hint` says what to do."""

    def check(value: object) -> object:
        if value is None or is_one_of(value, harmless):
            return value
        raise problem("is not supported" + (f": {hint}" if hint else " yet"))

    return HarmlessOnly(check, (None, *(value for value in harmless if value is not None)))


def refused(hint: str) -> HarmlessOnly:
    """Accept only values that ask for nothing in a field that is known but not supported."""
    return only(*NOTHING, hint=hint)


def _prompt_limit(value: Any) -> Any:
    """Accept -1 for what fits, and a positive number of tokens."""
    limit = None if value is False else _whole(value)
    if limit == 0:
        raise problem("must be a number of tokens, or -1 for as many as fit, not 0")
    return limit


def _whole(value: Any) -> Any:
    """Accept 5.0 for 5: tables with empty cells write whole numbers as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _output_limit(value: Any) -> Any:
    """Accept -1 for no limit, as llama.cpp and its clients write it."""
    return None if value == -1 else _whole(value)


def _seed(value: Any) -> Any:
    """Accept every whole number: a seed only has to give the same output each time."""
    seed = _whole(value)
    if type(seed) is int and seed not in SEEDS:
        return seed % 2**62
    return seed


def _text_logprobs(value: Any) -> Any:
    """Accept true for 1 and false for none."""
    return (1 if value else None) if isinstance(value, bool) else _whole(value)


def _chat_logprobs(value: Any) -> Any:
    """Return the number of likeliest tokens that `logprobs` itself asks for; null for no log-probabilities.

    OpenAI has a boolean here; the number that plain completions have is understood too.
    """
    if isinstance(value, bool):
        return 0 if value else None
    return _whole(value) or None


def _template_kwargs(value: dict[str, Any] | None) -> dict[str, Any] | None:
    """Limit the variables of a chat template, which a template may repeat and a cache may keep."""
    if value is not None and len(str(value)) > MAX_TEMPLATE_KWARGS_CHARS:
        raise problem(
            f"must have at most {MAX_TEMPLATE_KWARGS_CHARS:,} characters; texts belong into the messages"
        )
    return value


def _prompt_logprobs(value: Any) -> Any:
    """Accept false for none."""
    return None if value is False else _whole(value)


def _stop_strings(value: Any) -> Any:
    if value is None:
        return ()
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(string, str) for string in strings):
        raise problem("must be a string or a list of strings")
    strings = tuple(dict.fromkeys(filter(None, strings)))  # an empty string stops nothing
    if len(strings) > MAX_STOP_STRINGS:
        raise problem(f"must have at most {MAX_STOP_STRINGS} strings, not {len(strings)}")
    if any(len(string) > MAX_STOP_CHARS for string in strings):
        raise problem(f"must consist of strings of at most {MAX_STOP_CHARS} characters")
    return strings


def _is_token_list(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_TOKEN_ID for item in value)


def _prompt(value: Any) -> Any:
    """Accept a string, strings, token ids, or lists of token ids; no list may be empty."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise problem("must be a string, a list of strings, a list of token ids, or a list of such lists")
    if not value:
        raise problem("must not be empty")
    if all(isinstance(item, str) for item in value) or _is_token_list(value):
        return value
    if all(_is_token_list(item) for item in value):
        if not all(value):
            raise problem("must not contain an empty list of token ids")
        return value
    raise problem("must consist of strings only, of token ids only, or of lists of token ids only")


def _message_content(value: Any, info: ValidationInfo) -> Any:
    """Accept text, or a list of text parts, which are joined. An earlier answer may be null, which is no text."""
    if isinstance(value, str):
        return value
    if value is None:
        if info.data.get("role") == "assistant":
            return ""
        raise problem("must be given: a string or a list of text parts, not null")
    if not isinstance(value, list):
        raise problem("must be a string or a list of text parts")
    texts: list[str] = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "input_text", "output_text"):
            found = f"parts of type {kind!r} are" if isinstance(kind, str) else "a part without a type is"
            raise problem(f"may contain only text parts: {found} not supported yet")
        if not isinstance(part.get("text"), str):
            raise problem("has a text part whose 'text' is not a string")
        texts.append(part["text"])
    return "".join(texts)


def _logit_bias(value: Any) -> Any:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise problem("must be an object that maps token ids to biases")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        try:
            token_id = int(key)
        except ValueError:
            raise problem(f"has a key that is not a token id: {key!r}") from None
        if not 0 <= token_id <= MAX_TOKEN_ID:
            raise problem(f"has a key that is not a token id: {key!r}")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise problem(f"must have biases from -100 to 100, but token {token_id} has {bias!r}")
        biases[token_id] = float(bias)
    return biases


WholeNumber = Annotated[int, BeforeValidator(_whole)]
OutputLimit = Annotated[int | None, BeforeValidator(_output_limit)]
PromptLimit = Annotated[int | None, Field(ge=-1, le=MAX_TOKEN_ID), BeforeValidator(_prompt_limit)]
Seed = Annotated[int | None, BeforeValidator(_seed)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID), BeforeValidator(_whole)]
TextLogprobs = Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS), BeforeValidator(_text_logprobs)]
ChatLogprobs = Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS), BeforeValidator(_chat_logprobs)]
PromptLogprobs = Annotated[int | None, Field(ge=0, le=MAX_LOGPROBS), BeforeValidator(_prompt_logprobs)]
TemplateKwargs = Annotated[dict[str, Any] | None, AfterValidator(_template_kwargs)]
StopStrings = Annotated[tuple[str, ...], BeforeValidator(_stop_strings)]
LogitBias = Annotated[dict[int, float], BeforeValidator(_logit_bias)]
Prompt = Annotated[Any, AfterValidator(_prompt)]
MessageContent = Annotated[str, BeforeValidator(_message_content)]
Ignored = Annotated[Any, IgnoredField()]
Unsupported = Annotated[Any, only(*NOTHING)]
UnsupportedUnless1 = Annotated[Any, only(1, 1.0)]
