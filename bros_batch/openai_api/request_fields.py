"""Field types of completion requests, with their validation.

A check raises `problem(predicate)`, where the predicate completes a sentence that begins with the name of the field:
"'stop' must be ...".
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1000
MAX_TOKEN_ID = 2**31 - 1


def problem(message: str) -> PydanticCustomError:
    # Pydantic would read braces in the message as placeholders.
    return PydanticCustomError("request", "{message}", {"message": message})


def only(*harmless: object) -> AfterValidator:
    """Accept only null and `harmless` values in a field that is known but not supported."""

    def check(value: object) -> object:
        if value is None or value in harmless:
            return value
        raise problem("is not supported yet")

    return AfterValidator(check)


def _stop_strings(value: Any) -> Any:
    if value is None:
        return ()
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, list | tuple) or not all(isinstance(string, str) for string in strings):
        raise problem("must be a string or a list of strings")
    if len(strings) > MAX_STOP_STRINGS:
        raise problem(f"must have at most {MAX_STOP_STRINGS} strings, not {len(strings)}")
    if any(not string or len(string) > MAX_STOP_CHARS for string in strings):
        raise problem(f"must consist of strings of 1 to {MAX_STOP_CHARS} characters")
    return tuple(strings)


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


def _message_content(value: Any) -> Any:
    """Accept text, or a list of text parts, which are joined."""
    if isinstance(value, str):
        return value
    if value is None:
        raise problem("must be a string or a list of text parts, not null")
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


TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
StopStrings = Annotated[tuple[str, ...], BeforeValidator(_stop_strings)]
LogitBias = Annotated[dict[int, float], BeforeValidator(_logit_bias)]
Prompt = Annotated[Any, AfterValidator(_prompt)]
MessageContent = Annotated[str, BeforeValidator(_message_content)]
Unsupported = Annotated[Any, only()]
