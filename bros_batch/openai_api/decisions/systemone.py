"""`/v1/systemone`: named questions about a state, answered with probabilities, as vLLM defines it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from bros_batch.openai_api.completion_response import Json, ResponseHead
from bros_batch.openai_api.decisions.labels import LETTERS, AnswerStart, answer_start
from bros_batch.openai_api.decisions.reads import Answer, Option, Read, answers, engine_requests
from bros_batch.openai_api.endpoint import Endpoint, Outcome, ServedModel
from bros_batch.openai_api.endpoints import SYSTEMONE, EndpointPath
from bros_batch.openai_api.engine_requests import EngineRequests
from bros_batch.openai_api.request_fields import Ignored, TemplateKwargs, problem
from bros_batch.openai_api.served_request import CHARS_PER_PROMPT, ServedRequest
from bros_batch.openai_api.validation import RequestPart, validate
from bros_batch.request_error import RequestError
from bros_batch.text.tokenizer import ModelTokenizer

MAX_QUESTIONS = 64
MAX_LEVELS = 10
DIGITS = tuple(map(str, range(MAX_LEVELS)))


def _state_text(value: Any) -> Any:
    if value is None or value == "":
        raise problem("must not be empty")
    return _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class SystemOneQuestion(RequestPart):
    """One question. What its `criteria` are depends on its type."""

    type: Literal["choice", "noul", "score"]
    instructions: Any = None
    criteria: Any = None

    @property
    def options(self) -> Mapping[str, Any]:
        """The names of the options in order, with their descriptions if they have any."""
        if self.type == "choice":
            return dict(self.criteria)
        if self.type == "noul":
            given = self.criteria or {}
            return {"yes": given.get("true"), "no": given.get("false")}
        return {str(index): _text(level) for index, level in enumerate(self.criteria)}

    @property
    def num_chars(self) -> int:
        """Characters that the question adds to its prompt, about."""
        return CHARS_PER_PROMPT + sum(len(str(part)) for part in (self.instructions, self.criteria))


class SystemOneRequest(ServedRequest):
    """The whole body. The state is kept as text."""

    endpoint: ClassVar[EndpointPath] = SYSTEMONE
    prompt_param: ClassVar[str] = "state"

    state: Annotated[Any, AfterValidator(_state_text)]
    questions: dict[str, SystemOneQuestion] = Field(min_length=1, max_length=MAX_QUESTIONS)
    instructions: str | None = None
    chat_template_kwargs: TemplateKwargs = None

    cache_salt: Ignored = None

    @property
    def num_prompt_chars(self) -> int:
        questions = sum(question.num_chars for question in self.questions.values())
        return len(self.state) + len(self.instructions or "") + questions

    @property
    def template_kwargs(self) -> Mapping[str, Any]:
        return {"enable_thinking": False, **(self.chat_template_kwargs or {})}


class SystemOne(Endpoint[SystemOneRequest]):
    """`POST /v1/systemone`: answer questions about a state with probabilities, as in vLLM."""

    path: ClassVar[EndpointPath] = SYSTEMONE
    document_fields: ClassVar = {"state": "-"}

    def parse(self, raw: bytes | str) -> SystemOneRequest:
        request = validate(SystemOneRequest, raw)
        for name, question in request.questions.items():
            _check(name, question)
        if request.template_kwargs["enable_thinking"]:
            raise RequestError(
                "An answer is read at the first token, so 'enable_thinking' must be false.",
                "chat_template_kwargs.enable_thinking",
            )
        return request

    def with_document(self, request: SystemOneRequest, prompt: str, system: str | None) -> SystemOneRequest:
        instructions = request.instructions if system is None else system
        return request.model_copy(update={"state": prompt, "instructions": instructions})

    def engine_requests(self, request: SystemOneRequest, model: ServedModel) -> EngineRequests:
        reads = list(_reads(request, model.tokenizer))
        return engine_requests(
            model.tokenizer,
            request.state,
            reads,
            request.template_kwargs,
            system=request.instructions or None,
        )

    def param_of_part(self, request: SystemOneRequest, index: int) -> str:
        return f"questions.{list(request.questions)[index]}"

    def response(
        self, head: ResponseHead, request: SystemOneRequest, model: ServedModel, outcome: Outcome
    ) -> Json:
        found = dict(
            zip(request.questions, answers(list(_reads(request, model.tokenizer)), outcome), strict=True)
        )
        return {
            "id": head.id,
            "object": "structured_decision",
            "created": head.created,
            "model": head.model,
            "answers": {name: _answer(request.questions[name], answer) for name, answer in found.items()},
            "usage": {"input_tokens": outcome.prompt_tokens, "output_tokens": outcome.output_tokens},
            "diagnostics": {name: {"label_mass": answer.label_mass} for name, answer in found.items()},
        }


def _check(name: str, question: SystemOneQuestion) -> None:
    criteria, param = question.criteria, f"questions.{name}.criteria"
    if not name:
        raise RequestError("'questions' has a question without a name.", "questions")
    if question.type == "choice":
        if not isinstance(criteria, dict) or not 1 <= len(criteria) <= len(LETTERS):
            raise RequestError(
                f"'{param}' must map 1 to {len(LETTERS)} options to their descriptions, or to null.", param
            )
    elif question.type == "score":
        if not isinstance(criteria, list) or not 2 <= len(criteria) <= MAX_LEVELS:
            raise RequestError(f"'{param}' must be a list of 2 to {MAX_LEVELS} levels.", param)
    elif criteria is not None and (
        not isinstance(criteria, dict) or not criteria.keys() <= {"true", "false"}
    ):
        raise RequestError(f"'{param}' must be null, or an object with 'true' and 'false'.", param)


def _reads(request: SystemOneRequest, tokenizer: ModelTokenizer) -> Iterator[Read]:
    start = answer_start(tokenizer, request.template_kwargs)
    for name, question in request.questions.items():
        param = f"questions.{name}"
        text = "" if question.instructions is None else _text(question.instructions)
        yield Read(param, text, _options(question, start, param))


def _options(question: SystemOneQuestion, start: AnswerStart, param: str) -> Sequence[Option]:
    named = [(name, None if value is None else _text(value)) for name, value in question.options.items()]
    if question.type == "choice":
        labels = start.letters(len(named), param)
        return [
            Option(label, (token_id,), name if text is None else f"{name} ({text})")
            for (label, token_id), (name, text) in zip(labels.items(), named, strict=True)
        ]
    return [Option(name, _tokens_of(name, start, param), text or "") for name, text in named]


def _tokens_of(label: str, start: AnswerStart, param: str) -> tuple[int, ...]:
    """Return the tokens of a label in the spellings that are single tokens."""
    spellings = (start.token_of(spelling) for spelling in dict.fromkeys((label, label.capitalize())))
    found = tuple(dict.fromkeys(token_id for token_id in spellings if token_id is not None))
    if not found:
        raise RequestError(
            f"'{param}' cannot be asked: the label {label!r} is not a single token of this model. "
            "A question of type 'choice' has letters as labels.",
            param,
        )
    return found


def _answer(question: SystemOneQuestion, answer: Answer) -> Json:
    names = list(question.options)
    probabilities = dict(zip(names, answer.probabilities, strict=True))
    rest = {"probabilities": probabilities, "confidence": answer.confidence}
    if question.type == "choice":
        return {"type": "choice", "choice": names[answer.best], **rest}
    if question.type == "noul":
        return {"type": "noul", "noul": answer.probabilities[0], **rest}
    legend = {str(index): _text(level) for index, level in enumerate(question.criteria)}
    return {"type": "score", "score": answer.expected_index, "legend": legend, **rest}
