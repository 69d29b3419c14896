"""Questions of `bros-batch ask`: from the text of an option to the API's question, and from an answer to columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cli.failure import USAGE_ERROR, Failure

Json = dict[str, Any]

MAX_LEVELS = 100
_RANGE = re.compile(r"\s*(\d{1,9})\s*-\s*(\d{1,9})(?:\s+(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Question:
    """A question with the name of its column. `body` is the API's question; `lowest` is the first level of a score."""

    name: str
    body: Json
    lowest: int = 0

    @property
    def columns(self) -> Sequence[str]:
        """The answer, the probability of the answer, and the probabilities of all options."""
        return (self.name, f"{self.name}_probability", f"{self.name}_probabilities")

    def values(self, answer: Mapping[str, Any]) -> Json:
        """Return the values of the columns."""
        return dict(zip(self.columns, self._values(answer), strict=True))

    def _values(self, answer: Mapping[str, Any]) -> tuple[Any, float, Json]:
        if answer["type"] == "predicate":
            true = answer["probability"]
            return true >= 0.5, max(true, 1 - true), {"true": true, "false": 1 - true}
        if answer["type"] == "choice":
            found = {str(each["value"]): each["probability"] for each in answer["probabilities"]}
            return answer["choice"], found[str(answer["choice"])], found
        found = {each["label"]: each["probability"] for each in answer["probabilities"]}
        return answer["score"] + self.lowest, max(found.values()), found


def predicate(text: str) -> Question:
    """Read `NAME: QUESTION`."""
    name, rest = _named(text, "--question", "urgent: Is this urgent?")
    return Question(name, {"type": "predicate", "name": name, "instructions": rest})


def choice(text: str) -> Question:
    """Read `NAME: A|B|C` or `NAME: QUESTION? A|B|C`."""
    example = "team: Which team? billing|access|sales"
    name, rest = _named(text, "--choice", example)
    question, mark, options = rest.rpartition("?")
    values = [option.strip() for option in options.split("|")]
    if len(values) < 2 or not all(values) or len(set(values)) < len(values):
        raise _wrong("--choice", text, "needs at least two different options, separated by |", example)
    body = {"type": "choice", "name": name, "instructions": question + mark or name}
    return Question(name, {**body, "choices": [{"value": value} for value in values]})


def score(text: str) -> Question:
    """Read `NAME: LOWEST-HIGHEST QUESTION`."""
    example = "quality: 1-5 How good is it?"
    name, rest = _named(text, "--score", example)
    found = _RANGE.fullmatch(rest)
    if found is None:
        raise _wrong("--score", text, "needs a range of levels", example)
    lowest, highest = int(found[1]), int(found[2])
    if not lowest < highest < lowest + MAX_LEVELS:
        raise _wrong("--score", text, f"needs a range of 2 to {MAX_LEVELS} levels", example)
    levels = [{"label": str(level)} for level in range(lowest, highest + 1)]
    body = {"type": "score", "name": name, "instructions": found[3] or name, "levels": levels}
    return Question(name, body, lowest)


def _named(text: str, option: str, example: str) -> tuple[str, str]:
    name, mark, rest = (part.strip() for part in text.partition(":"))
    if not (name and mark and rest):
        raise _wrong(option, text, "needs the name of a column, a colon, and what is asked", example)
    return name, rest


def _wrong(option: str, text: str, problem: str, example: str) -> Failure:
    return Failure(f'{option} "{text[:80]}" {problem}, such as {option} "{example}".', USAGE_ERROR)
