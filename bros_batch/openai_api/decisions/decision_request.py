"""Body of `POST /v1/decisions`, as the `openai` package defines it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from bros_batch.openai_api.decisions.input_text import instructions_text, text_of_input
from bros_batch.openai_api.decisions.reads import MAX_OPTIONS
from bros_batch.openai_api.endpoints import DECISIONS, EndpointPath
from bros_batch.openai_api.request_fields import Ignored
from bros_batch.openai_api.served_request import CHARS_PER_PROMPT, ServedRequest
from bros_batch.openai_api.validation import LenientPart, validate
from bros_batch.request_error import RequestError

MAX_QUESTIONS = 400
PREDICATE_OPTIONS = ("true", "false")


class ChoiceOption(LenientPart):
    """One of the values that a choice question chooses from."""

    value: str | bool
    description: str | None = None

    @property
    def text(self) -> str:
        value = self.value if isinstance(self.value, str) else str(self.value).lower()
        return f"{value} ({self.description})" if self.description else value


class ScoreLevel(LenientPart):
    """One level of a score question."""

    label: str
    description: str | None = None

    @property
    def text(self) -> str:
        return f"{self.label} ({self.description})" if self.description else self.label


class DecisionQuestion(LenientPart):
    """A question: whether a statement is true, which of several values is right, or which level of a scale."""

    type: Literal["predicate", "choice", "score"]
    instructions: Annotated[str, BeforeValidator(instructions_text)]
    name: str | None = None
    choices: list[ChoiceOption] | None = Field(None, min_length=2, max_length=MAX_OPTIONS)
    levels: list[ScoreLevel] | None = Field(None, min_length=2, max_length=MAX_OPTIONS)

    @property
    def options(self) -> Sequence[str]:
        """What the model chooses from, in order."""
        if self.type == "predicate":
            return PREDICATE_OPTIONS
        return [option.text for option in self.choices or self.levels or ()]


class DecisionRequest(ServedRequest):
    """The whole body. `input` is kept as the text that the questions are about."""

    endpoint: ClassVar[EndpointPath] = DECISIONS
    prompt_param: ClassVar[str] = "input"

    input: Annotated[str, BeforeValidator(text_of_input)]
    questions: list[DecisionQuestion] = Field(min_length=1, max_length=MAX_QUESTIONS)

    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    safety_identifier: Ignored = None

    @property
    def num_prompt_chars(self) -> int:
        return len(self.input) + sum(_num_chars(question) for question in self.questions)

    @property
    def template_kwargs(self) -> Mapping[str, Any]:
        """What the request sets in the chat template: an answer is its first token, so there is no reasoning."""
        return {"enable_thinking": False}


def _num_chars(question: DecisionQuestion) -> int:
    return CHARS_PER_PROMPT + len(question.instructions) + sum(map(len, question.options))


def parse_decision(raw: bytes | str) -> DecisionRequest:
    """Parse the JSON of a body. Raises RequestError, which names the first invalid field."""
    request = validate(DecisionRequest, raw)
    for index, question in enumerate(request.questions):
        where = f"questions[{index}]"
        for kind, name in (("choice", "choices"), ("score", "levels")):
            given = getattr(question, name) is not None
            if given and question.type != kind:
                raise RequestError(
                    f"'{where}.{name}' is only for questions of type '{kind}', not '{question.type}'.",
                    f"{where}.{name}",
                )
            if not given and question.type == kind:
                raise RequestError(f"Missing required parameter: '{where}.{name}'.", f"{where}.{name}")
        values = [(type(option.value), option.value) for option in question.choices or ()]
        if len(set(values)) < len(values):
            raise RequestError(f"'{where}.choices' has the same value twice.", f"{where}.choices")
    return request
