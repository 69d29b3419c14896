"""Reads: how the model is asked a question about a text whose answer is one token.

    | instruction | text | question, options with labels | the template's end | -> log-probabilities of the labels

All questions about a text share its tokens and their KV memory, and all texts those of the instruction. What follows
the text is computed for each question, so it is kept short: options that are the same for every question of a kind are
a part of the instruction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bros_batch.openai_api.decisions.labels import answer_start
from bros_batch.openai_api.endpoint import Outcome
from bros_batch.openai_api.engine_requests import EngineRequests
from bros_batch.request_error import RequestError
from bros_batch.text.common_beginning import encode_endings
from bros_batch.text.tokenizer import ModelTokenizer
from engine.wire.limits import MAX_ITEM_TOKENS
from engine.wire.request_terms import Part, Sampling

MAX_OPTIONS = 255
SEPARATOR = "\n\n"  # of instruction, text and question
INSTRUCTION = "Read the text. Answer the question after it with the label of one option and nothing else."


@dataclass(frozen=True, slots=True)
class Option:
    """A possible answer: its label and the label's tokens (several if it has several spellings), and what it means."""

    label: str
    token_ids: tuple[int, ...]
    meaning: str


def options_text(options: Iterable[Option]) -> str:
    """Return options as the model reads them, one per line."""
    return "\n".join(f"{each.label}: {each.meaning}" if each.meaning else each.label for each in options)


@dataclass(frozen=True, slots=True)
class Read:
    """One question. `param` is the field of the request that asks it. With `lists_options` false, the instruction of
    the request says which options it has."""

    param: str
    question: str
    options: Sequence[Option]
    lists_options: bool = True

    @property
    def text(self) -> str:
        """The question as the model reads it."""
        lines = [f"Question: {self.question}"] if self.question or not self.lists_options else []
        if self.lists_options:
            lines.append(options_text(self.options))
        return "\n".join(lines)

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(token_id for option in self.options for token_id in option.token_ids)


@dataclass(frozen=True, slots=True)
class Answer:
    """The probabilities of a question's options, which add up to 1.

    `label_mass` is the probability that the model gives to all labels together, `confidence` that of the likeliest
    option: both among all tokens of the vocabulary.
    """

    probabilities: Sequence[float]
    label_mass: float

    @property
    def best(self) -> int:
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)

    @property
    def confidence(self) -> float:
        return self.probabilities[self.best] * self.label_mass

    @property
    def expected_index(self) -> float:
        return sum(index * probability for index, probability in enumerate(self.probabilities))


def engine_requests(
    tokenizer: ModelTokenizer,
    text: str,
    reads: Sequence[Read],
    template_kwargs: Mapping[str, Any],
    *,
    instruction: str = INSTRUCTION,
    system: str | None = None,
) -> EngineRequests:
    """Return one part per read. Raises RequestError if the chat template does not show the questions as they are."""
    first, *others = (read.text for read in reads)
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": f"{instruction}{SEPARATOR}{text}{SEPARATOR}{first}"})
    chat = tokenizer.chat_text(messages, template_kwargs)
    tail = answer_start(tokenizer, template_kwargs).tail
    begin = chat.rfind(first)
    end = begin + len(first)
    if begin < 0 or not chat.endswith(tail) or end > len(chat) - len(tail):
        raise RequestError(
            "The model's chat template does not end with the question, so answers cannot be read.",
            reads[0].param,
        )
    # Every token has at most so many characters.
    least_tokens = begin // tokenizer.longest_token_chars
    if least_tokens * len(reads) > MAX_ITEM_TOKENS:
        raise RequestError(
            f"The input is too long for {len(reads)} questions: together they take more than {MAX_ITEM_TOKENS} tokens.",
            reads[0].param,
            "context_length_exceeded",
        )
    endings = [question + chat[end:] for question in (first, *others)]
    # The template may have changed what stands before the question.
    separator = SEPARATOR if chat.endswith(SEPARATOR, 0, begin) else ""
    shared_ids, rests = encode_endings(tokenizer, chat[: begin - len(separator)], endings, separator)
    parts = [
        Part(rest, Sampling(max_tokens=0, score_token_ids=read.token_ids))
        for rest, read in zip(rests, reads, strict=True)
    ]
    return EngineRequests(shared_ids, parts)


def answers(reads: Sequence[Read], outcome: Outcome) -> list[Answer]:
    """Return what the engine's scores say about each question."""
    return [_answer(read, choice.scores or ()) for read, choice in zip(reads, outcome.choices, strict=True)]


def _answer(read: Read, scores: Sequence[float]) -> Answer:
    if len(scores) != len(read.token_ids):
        raise ValueError(f"{len(scores)} scores for {len(read.token_ids)} labels")
    highest = max(scores)
    weights = iter([math.exp(score - highest) for score in scores])
    of_options = [sum(next(weights) for _ in option.token_ids) for option in read.options]
    total = sum(of_options)
    mass = min(total * math.exp(highest), 1.0)
    return Answer([weight / total for weight in of_options], mass)
