"""Questions about a row: from values of Python to the questions of the API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bros_batch.client.bad_input import BadInput

MAX_LEVELS = 100
# Text: true or false. Options: a choice. Range: a score. A pair of text and options or range: what is asked, too.
QuestionValue = str | Sequence[Any] | range | Mapping[str, Any]
Questions = Mapping[str, QuestionValue] | Sequence[Mapping[str, Any]]


def api_questions(questions: Questions) -> list[dict[str, Any]]:
    """Return the API's questions. Raises BadInput for a value that is no question."""
    if isinstance(questions, Mapping):
        found = [_question(str(name), value) for name, value in questions.items()]
    else:
        found = [dict(question) for question in questions]
    if not found:
        raise BadInput("Ask at least one question.")
    return found


def _question(name: str, value: QuestionValue) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {"name": name, **value}
    if isinstance(value, str):
        return {"type": "predicate", "name": name, "instructions": value}
    text: Any = name
    options: Any = value
    if isinstance(value, tuple) and len(value) == 2 and not isinstance(value[1], str):
        text, options = value
    if isinstance(text, str) and isinstance(options, range) and options.step == 1:
        if not 2 <= len(options) <= MAX_LEVELS:
            raise BadInput(f"The question {name!r} needs a range of 2 to {MAX_LEVELS} levels.")
        levels = [{"label": str(level)} for level in options]
        return {"type": "score", "name": name, "instructions": text, "levels": levels}
    if isinstance(text, str) and isinstance(options, list | tuple) and len(options) > 1:
        choices = [{"value": option} for option in options]
        return {"type": "choice", "name": name, "instructions": text, "choices": choices}
    raise BadInput(
        f"The question {name!r} must be a text for true or false, a list of options to choose from, a range of levels, "
        f"or a pair of a text and one of these, not {value!r}."
    )
