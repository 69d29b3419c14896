"""Labels: short texts, each of which is one token at the place where the model's answer begins."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from bros_batch.request_error import RequestError
from bros_batch.text.common_beginning import common_length
from bros_batch.text.tokenizer import ModelTokenizer

PROBES = ("x", "Which one is it?")
LETTERS = tuple(string.ascii_uppercase)


def letter_labels() -> Iterator[str]:
    """Yield the labels of options in order: A to Z, then AA, AB and so on."""
    yield from LETTERS
    for pair in itertools.product(LETTERS, repeat=2):
        yield "".join(pair)


class AnswerStart:
    """The place where the answer to a chat begins, after the model's chat template."""

    def __init__(self, tokenizer: ModelTokenizer, template_kwargs: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._texts = [tokenizer.chat_text([_user(probe)], template_kwargs) for probe in PROBES]
        self._ids = [tokenizer.encode_part(text)[0] for text in self._texts]
        self._space = _space_before_answer(tokenizer, self._texts[0], template_kwargs)
        self._found: dict[str, int | None] = {}
        self._letters: dict[int, dict[str, int]] = {}  # by number
        num_common = common_length([text[::-1] for text in self._texts])
        self.tail = self._texts[0][len(self._texts[0]) - num_common :]  # what every chat ends with

    def token_of(self, label: str) -> int | None:
        """Return the token that stands for `label` at this place, or None if it takes several."""
        if label not in self._found:
            self._found[label] = self._find(self._space + label)
        return self._found[label]

    def _find(self, answer: str) -> int | None:
        found: set[int] = set()
        for text, ids in zip(self._texts, self._ids, strict=True):
            longer, _ = self._tokenizer.encode_part(text + answer)
            if longer[:-1] != ids:
                return None
            found.add(longer[-1])
        return found.pop() if len(found) == 1 else None

    def letters(self, number: int, param: str) -> dict[str, int]:
        """Return labels for `number` options, with their tokens. Raises RequestError if the model has too few."""
        if number in self._letters:
            return self._letters[number]
        chosen: dict[str, int] = {}
        missing = ""
        for label in letter_labels():
            if len(chosen) == number:
                self._letters[number] = chosen
                return chosen
            token_id = self.token_of(label)
            if token_id is not None and token_id not in chosen.values():
                chosen[label] = token_id
            else:
                missing = missing or label
        raise RequestError(
            f"'{param}' has {number} options, but only {len(chosen)} labels are single tokens of this model; "
            f"{missing!r} is not one.",
            param,
        )


@lru_cache(maxsize=64)
def _answer_start(tokenizer: ModelTokenizer, template_kwargs: bytes) -> AnswerStart:
    return AnswerStart(tokenizer, msgspec.json.decode(template_kwargs))


def answer_start(tokenizer: ModelTokenizer, template_kwargs: Mapping[str, Any]) -> AnswerStart:
    """Return where an answer begins with these template variables. Raises RequestError if there is no template."""
    return _answer_start(tokenizer, msgspec.json.encode(template_kwargs, order="sorted"))


def _space_before_answer(tokenizer: ModelTokenizer, text: str, template_kwargs: Mapping[str, Any]) -> str:
    """Return the space that the template puts before an answer, as the model has seen it in training."""
    messages: Sequence[Mapping[str, str]] = [
        _user(PROBES[0]),
        {"role": "assistant", "content": "A"},
        _user("y"),
    ]
    try:
        whole = tokenizer.chat_text(messages, template_kwargs)
    except RequestError:
        whole = ""
    if whole.startswith(text):
        return " " if whole.startswith(" A", len(text)) else ""
    return "" if text[-1:] in ("\n", " ", ">", "") else " "


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}
