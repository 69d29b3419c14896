"""Splits an output into the model's reasoning and its answer while the text is still growing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from bros_batch.text.partial_match import num_begun_chars

ReasoningName = Literal["think", "mistral"]


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """The texts before and after the reasoning. A vocabulary may have tokens for them."""

    opening: str
    closing: str


REASONING_MARKS: dict[ReasoningName, ReasoningMarks] = {
    "think": ReasoningMarks("<think>", "</think>"),
    "mistral": ReasoningMarks("[THINK]", "[/THINK]"),
}


def marks_of_template(source: str) -> ReasoningMarks | None:
    """Return the marks that a chat template knows, or None if its model does not reason."""
    return next((marks for marks in REASONING_MARKS.values() if marks.closing in source), None)


class ReasoningPhase(Enum):
    """Where an output is: before its first mark, in the reasoning, or in the answer."""

    UNDECIDED = "undecided"
    REASONING = "reasoning"
    ANSWER = "answer"


def first_phase(marks: ReasoningMarks, prompt_end: str) -> ReasoningPhase:
    """Return where an output begins after a prompt that ends in `prompt_end`: some templates write the marks."""
    end = prompt_end.rstrip()
    if end.endswith(marks.opening):
        return ReasoningPhase.REASONING
    return ReasoningPhase.ANSWER if end.endswith(marks.closing) else ReasoningPhase.UNDECIDED


class ReasoningSplitter:
    """Separates reasoning from answer. White space around the reasoning belongs to neither.

    `has_reasoned` is true once there is reasoning, even if it is empty.
    """

    __slots__ = ("_is_trimming", "_marks", "_rest", "_space", "has_reasoned", "phase")

    def __init__(self, marks: ReasoningMarks, phase: ReasoningPhase = ReasoningPhase.UNDECIDED) -> None:
        self._marks = marks
        self.phase = phase
        self._rest = ""
        self._space = ""
        self.has_reasoned = self._is_trimming = phase is ReasoningPhase.REASONING

    def push(self, text: str, final: bool = False) -> tuple[str, str]:
        """Append `text`, after which no more follows if it is `final`.

        Return the reasoning and the answer that are certain in addition.
        """
        if self.phase is ReasoningPhase.ANSWER:
            return "", self._trimmed(text)
        self._rest += text
        if self.phase is ReasoningPhase.UNDECIDED and not self._decide(final):
            return "", ""
        if self.phase is ReasoningPhase.REASONING:
            return self._reason(final)
        text, self._rest = self._rest, ""
        return "", text

    def _decide(self, final: bool) -> bool:
        begun = self._rest.lstrip()
        opening = self._marks.opening
        if begun.startswith(opening):
            self.phase = ReasoningPhase.REASONING
            self._rest = begun[len(opening) :]
            self.has_reasoned = self._is_trimming = True
        elif opening.startswith(begun) and not final:
            return False
        else:
            self.phase = ReasoningPhase.ANSWER
        return True

    def _reason(self, final: bool) -> tuple[str, str]:
        text, self._rest = self._rest, ""
        before, closing, after = text.partition(self._marks.closing)
        if closing:
            reasoning = self._held(before)
            self.phase = ReasoningPhase.ANSWER
            self._is_trimming = True
            return reasoning, self._trimmed(after)
        held = 0 if final else num_begun_chars(text, self._marks.closing)
        self._rest = text[len(text) - held :]
        return self._held(text[: len(text) - held]), ""

    def _held(self, text: str) -> str:
        """Return the text to show now, and hold back white space at its end."""
        text = self._space + self._trimmed(text)
        shown = text.rstrip()
        self._space = text[len(shown) :]
        return shown

    def _trimmed(self, text: str) -> str:
        if self._is_trimming:
            text = text.lstrip()
            self._is_trimming = not text
        return text
