"""Reasoning told apart from the answer, whole and in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bros_batch.text.reasoning import (
    REASONING_MARKS,
    ReasoningMarks,
    ReasoningPhase,
    ReasoningSplitter,
    first_phase,
)

THINK = REASONING_MARKS["think"]
words = st.text(st.characters(exclude_characters="<>[]"), max_size=20)


def split(text: str, cuts: list[int], marks: ReasoningMarks, phase: ReasoningPhase) -> tuple[str, str]:
    splitter = ReasoningSplitter(marks, phase)
    reasoning = answer = ""
    ends = [*sorted(cut for cut in cuts if cut < len(text)), len(text)]
    start = 0
    for end in ends:
        more = splitter.push(text[start:end], final=end == len(text) and end == ends[-1])
        reasoning, answer, start = reasoning + more[0], answer + more[1], end
    more = splitter.push("", final=True)
    return reasoning + more[0], answer + more[1]


@pytest.mark.parametrize("marks", REASONING_MARKS.values(), ids=REASONING_MARKS)
@pytest.mark.parametrize("phase", [ReasoningPhase.UNDECIDED, ReasoningPhase.REASONING])
@given(words, words, st.sampled_from(["", "\n", " \n\n"]), st.lists(st.integers(0, 80), max_size=8))
def test_reasoning_is_found_wherever_the_text_is_split(
    marks: ReasoningMarks, phase: ReasoningPhase, reasoning: str, answer: str, gap: str, cuts: list[int]
) -> None:
    opening = gap + marks.opening if phase is ReasoningPhase.UNDECIDED else ""
    text = f"{opening}{gap}{reasoning}{gap}{marks.closing}{gap}{answer}"
    assert split(text, cuts, marks, phase) == (reasoning.strip(), answer.lstrip())


@pytest.mark.parametrize("marks", REASONING_MARKS.values(), ids=REASONING_MARKS)
@given(words, st.lists(st.integers(0, 40), max_size=8))
def test_an_answer_without_reasoning_stays_as_it_is(
    marks: ReasoningMarks, answer: str, cuts: list[int]
) -> None:
    assert split(answer, cuts, marks, ReasoningPhase.UNDECIDED) == ("", answer)
    assert split(answer, cuts, marks, ReasoningPhase.ANSWER) == ("", answer)


def test_reasoning_that_is_cut_off() -> None:
    assert split("<think>Let me", [], THINK, ReasoningPhase.UNDECIDED) == ("Let me", "")
    assert split("Let me </thi", [], THINK, ReasoningPhase.REASONING) == ("Let me </thi", "")
    assert split(" <thin", [], THINK, ReasoningPhase.UNDECIDED) == ("", " <thin")


@pytest.mark.parametrize(
    ("prompt_end", "phase"),
    [
        ("<|assistant|>", ReasoningPhase.UNDECIDED),
        ("<|assistant|>\n<think>\n", ReasoningPhase.REASONING),
        ("<|assistant|>\n<think>\n\n</think>\n\n", ReasoningPhase.ANSWER),
        ("", ReasoningPhase.UNDECIDED),
    ],
)
def test_where_an_output_begins(prompt_end: str, phase: ReasoningPhase) -> None:
    assert first_phase(THINK, prompt_end) is phase
