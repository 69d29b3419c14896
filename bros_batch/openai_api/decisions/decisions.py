"""`/v1/decisions`: typed questions about an input, answered with probabilities, as OpenAI defines it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from bros_batch.openai_api.completion_response import Json, ResponseHead
from bros_batch.openai_api.decisions.decision_request import (
    PREDICATE_OPTIONS,
    DecisionQuestion,
    DecisionRequest,
    parse_decision,
)
from bros_batch.openai_api.decisions.labels import AnswerStart, answer_start
from bros_batch.openai_api.decisions.reads import (
    INSTRUCTION,
    Answer,
    Option,
    Read,
    answers,
    engine_requests,
    options_text,
)
from bros_batch.openai_api.endpoint import Endpoint, Outcome, ServedModel
from bros_batch.openai_api.endpoints import DECISIONS, EndpointPath
from bros_batch.openai_api.engine_requests import EngineRequests


class Decisions(Endpoint[DecisionRequest]):
    """`POST /v1/decisions`: answer questions about a text with probabilities. Options have letters as labels."""

    path: ClassVar[EndpointPath] = DECISIONS
    document_fields: ClassVar = {"input": "-"}

    def parse(self, raw: bytes | str) -> DecisionRequest:
        return parse_decision(raw)

    def with_document(self, request: DecisionRequest, prompt: str, system: str | None) -> DecisionRequest:
        return request.model_copy(update={"input": prompt if system is None else f"{system}\n\n{prompt}"})

    def engine_requests(self, request: DecisionRequest, model: ServedModel) -> EngineRequests:
        tokenizer, kwargs = model.tokenizer, request.template_kwargs
        start = answer_start(tokenizer, kwargs)
        # Always stated, so that an answer does not depend on which other questions are asked.
        of_predicates = options_text(_options(start, PREDICATE_OPTIONS, "questions"))
        instruction = f"{INSTRUCTION} If the question lists none, the options are:\n{of_predicates}"
        return engine_requests(
            tokenizer, request.input, _reads(request, start), kwargs, instruction=instruction
        )

    def param_of_part(self, request: DecisionRequest, index: int) -> str:
        return f"questions[{index}]"

    def response(
        self, head: ResponseHead, request: DecisionRequest, model: ServedModel, outcome: Outcome
    ) -> Json:
        start = answer_start(model.tokenizer, request.template_kwargs)
        found = answers(_reads(request, start), outcome)
        return {
            "model": head.model,
            "answers": [
                _answer(question, answer) for question, answer in zip(request.questions, found, strict=True)
            ],
            "usage": {
                "input_tokens": outcome.prompt_tokens,
                "input_tokens_details": {"cached_tokens": outcome.cached_tokens, "cache_write_tokens": 0},
                "output_tokens": outcome.output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": outcome.prompt_tokens + outcome.output_tokens,
            },
        }


def _reads(request: DecisionRequest, start: AnswerStart) -> Sequence[Read]:
    reads = []
    of_predicates = _options(start, PREDICATE_OPTIONS, "questions")
    for index, question in enumerate(request.questions):
        param = f"questions[{index}]"
        is_predicate = question.type == "predicate"
        options = of_predicates if is_predicate else _options(start, question.options, param)
        reads.append(Read(param, question.instructions, options, not is_predicate))
    return reads


def _options(start: AnswerStart, meanings: Sequence[str], param: str) -> Sequence[Option]:
    """Return options with letters as labels."""
    labels = start.letters(len(meanings), param)
    return [
        Option(label, (token_id,), meaning)
        for (label, token_id), meaning in zip(labels.items(), meanings, strict=True)
    ]


def _answer(question: DecisionQuestion, answer: Answer) -> Json:
    head: Json = {"type": question.type, "name": question.name}
    if question.type == "predicate":
        return {**head, "probability": answer.probabilities[0]}
    if question.type == "choice":
        values = [option.value for option in question.choices or ()]
        return {
            **head,
            "choice": values[answer.best],
            "confidence": answer.confidence,
            "probabilities": [
                {"value": value, "probability": probability}
                for value, probability in zip(values, answer.probabilities, strict=True)
            ],
        }
    return {
        **head,
        "score": answer.expected_index,
        "confidence": answer.confidence,
        "probabilities": [
            {"value": index, "label": level.label, "probability": probability}
            for index, (level, probability) in enumerate(
                zip(question.levels or (), answer.probabilities, strict=True)
            )
        ],
    }
