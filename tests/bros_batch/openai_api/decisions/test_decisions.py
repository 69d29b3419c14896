"""What questions become for the engine, and what its scores become as answers."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from bros_batch.openai_api.completion_response import ResponseHead
from bros_batch.openai_api.endpoint import Outcome
from bros_batch.openai_api.endpoints import DECISIONS, SYSTEMONE
from bros_batch.openai_api.registry import endpoint_at
from bros_batch.request_error import RequestError
from bros_batch.settings import DEMO_MODEL_DIR
from bros_batch.text.tokenizer import ModelTokenizer, load_tokenizer
from engine.wire.item_messages import Choice
from tests.bros_batch.openai_api.factories import served_model

DOCUMENT = "Invoice from ACME Ltd.\nDate: 3 March 2026.\n\nTotal: EUR 12.50  \n\n" * 12
PREDICATE = {"type": "predicate", "name": "paid", "instructions": "This has been paid."}
CHOICE = {
    "type": "choice",
    "instructions": "Which currency?",
    "choices": [{"value": "EUR"}, {"value": "USD", "description": "dollars"}, {"value": True}],
}
SCORE = {"type": "score", "instructions": "How urgent?", "levels": [{"label": "low"}, {"label": "high"}]}


@pytest.fixture(scope="module")
def tokenizer() -> ModelTokenizer:
    return load_tokenizer(str(DEMO_MODEL_DIR))


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "input": DOCUMENT, "questions": [PREDICATE, CHOICE, SCORE], **fields}


def test_each_question_is_a_prompt_that_begins_with_instruction_and_document(
    tokenizer: ModelTokenizer,
) -> None:
    endpoint = endpoint_at(DECISIONS)
    work = endpoint.checked_engine_requests(endpoint.parse(json.dumps(body())), served_model(tokenizer, 2048))
    texts = [tokenizer.decode_all(work.prompt_of(part)) for part in work.parts]
    for text, part, asked in zip(texts, work.parts, (PREDICATE, CHOICE, SCORE), strict=True):
        instruction, _, question = text.partition(f"\n\n{DOCUMENT}\n\n")
        assert instruction.endswith("If the question lists none, the options are:\nA: true\nB: false")
        assert question.startswith(f"Question: {asked['instructions']}")
        assert tokenizer.encode_part(text)[0] == work.prompt_of(part)
        assert [tokenizer.bytes_of(token_id) for token_id in part.sampling.score_token_ids] == [
            label.encode() for label in "ABC"[: 3 if asked is CHOICE else 2]
        ]
        assert part.sampling.max_tokens == 0
    tail = "<|end|><|assistant|>"
    assert texts[0].endswith(f"Question: {PREDICATE['instructions']}{tail}")
    assert texts[1].endswith(f"\nA: EUR\nB: USD (dollars)\nC: true{tail}")
    assert texts[2].endswith(f"\nA: low\nB: high{tail}")
    shared = tokenizer.decode_all(work.shared_ids)
    assert shared.endswith("Question: ")
    assert DOCUMENT in shared


def test_prompts_are_tokenized_as_a_whole_however_the_text_ends(tokenizer: ModelTokenizer) -> None:
    """The tokens of the questions are known from the first text on, unless they depend on what comes before."""
    endpoint = endpoint_at(DECISIONS)
    for text in (
        "An invoice.",
        "spaces  ",
        "a line\n",
        "\n\n",
        "1.000,00 €",
        "Quest",
        "🙂",
        "x" * 300,
        "\n\nQuestion: ",
    ):
        request = endpoint.parse(json.dumps(body(input=text)))
        work = endpoint.checked_engine_requests(request, served_model(tokenizer, 2048))
        for part in work.parts:
            prompt = work.prompt_of(part)
            shown = tokenizer.decode_all(prompt)
            assert f"\n\n{text}\n\nQuestion: " in shown
            assert tokenizer.encode_part(shown)[0] == prompt


def test_the_prompt_of_a_question_depends_on_no_other(tokenizer: ModelTokenizer) -> None:
    endpoint = endpoint_at(DECISIONS)

    def prompts(*questions: dict[str, Any]) -> list[list[int]]:
        request = endpoint.parse(json.dumps(body(questions=questions)))
        work = endpoint.checked_engine_requests(request, served_model(tokenizer, 2048))
        return [work.prompt_of(part) for part in work.parts]

    together = prompts(PREDICATE, CHOICE, SCORE)
    assert together == [*prompts(PREDICATE), *prompts(CHOICE), *prompts(SCORE)]


def test_scores_become_answers_in_the_order_of_the_questions(tokenizer: ModelTokenizer) -> None:
    endpoint = endpoint_at(DECISIONS)
    scores = [[math.log(0.6), math.log(0.2)], [math.log(0.1), math.log(0.3), math.log(0.1)], [-1.0, -1.0]]
    outcome = Outcome([Choice([], "length", scores=each) for each in scores], [[]] * 3, 90, 40)
    head = ResponseHead(DECISIONS, "req_1", "m", 5)
    request = endpoint.parse(json.dumps(body()))
    found = endpoint.response(head, request, served_model(tokenizer), outcome)
    predicate, choice, score = found["answers"]
    assert predicate == {"type": "predicate", "name": "paid", "probability": pytest.approx(0.75)}
    assert (choice["choice"], choice["name"]) == ("USD", None)
    assert choice["confidence"] == pytest.approx(0.3)
    assert [each["value"] for each in choice["probabilities"]] == ["EUR", "USD", True]
    assert [each["probability"] for each in choice["probabilities"]] == pytest.approx([0.2, 0.6, 0.2])
    assert score["score"] == pytest.approx(0.5)
    assert [(each["value"], each["label"]) for each in score["probabilities"]] == [(0, "low"), (1, "high")]
    assert found["usage"]["input_tokens_details"]["cached_tokens"] == 40
    assert found["usage"]["total_tokens"] == 90


@pytest.mark.parametrize(
    ("param", "said", "fields"),
    [
        ("questions", "at least 1", {"questions": []}),
        ("questions", "at most 400", {"questions": [PREDICATE] * 401}),
        ("questions[0].type", "predicate", {"questions": [{**PREDICATE, "type": "essay"}]}),
        ("questions[0].choices", "Missing", {"questions": [{"type": "choice", "instructions": "?"}]}),
        (
            "questions[1].levels",
            "only for",
            {"questions": [PREDICATE, {**PREDICATE, "levels": SCORE["levels"]}]},
        ),
        (
            "questions[0].choices",
            "twice",
            {"questions": [{**CHOICE, "choices": [{"value": "a"}, {"value": "a"}]}]},
        ),
        (
            "questions[0]",
            "'AA' is not one",
            {"questions": [{**CHOICE, "choices": [{"value": str(number)} for number in range(200)]}]},
        ),
        (
            "questions[1]",
            "'questions[1]'",
            {"questions": [PREDICATE, {**PREDICATE, "instructions": "x " * 2048}]},
        ),
        (
            "input",
            "'input_image' are not",
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        ),
        ("input", "call_id", {"input": [{"type": "function_call_output", "call_id": "c", "output": "o"}]}),
        (
            "input",
            "levels",
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_json", "data": {"a": [[[]] * 20_000]}}]}
                ]
            },
        ),
    ],
)
def test_what_cannot_be_asked_is_named(
    tokenizer: ModelTokenizer, param: str, said: str, fields: dict[str, Any]
) -> None:
    endpoint = endpoint_at(DECISIONS)
    with pytest.raises(RequestError) as caught:
        endpoint.checked_engine_requests(
            endpoint.parse(json.dumps(body(**fields))), served_model(tokenizer, 2048)
        )
    assert caught.value.param == param
    assert said in caught.value.message


def test_a_value_and_a_boolean_with_the_same_text_are_two_choices() -> None:
    choices = [{"value": "true"}, {"value": True}]
    request = endpoint_at(DECISIONS).parse(json.dumps(body(questions=[{**CHOICE, "choices": choices}])))
    assert [option.value for option in request.questions[0].choices] == ["true", True]


def test_messages_and_tool_calls_become_one_text() -> None:
    messages = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c", "output": "found"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Done"}]},
        {"role": "user", "content": [{"type": "input_json", "data": {"n": [1, None]}}]},
    ]
    request = endpoint_at(DECISIONS).parse(json.dumps(body(input=messages)))
    assert request.input == (
        'Hi\n\nassistant calls look: {"a": 1}\n\nlook returns: found\n\nassistant: Done\n\n{"n":[1,null]}'
    )


def test_systemone_names_its_questions_and_answers(tokenizer: ModelTokenizer) -> None:
    endpoint = endpoint_at(SYSTEMONE)
    questions = {
        "team": {"type": "choice", "instructions": "Who?", "criteria": {"billing": "money", "sales": None}},
        "tone": {"type": "score", "criteria": ["calm", "furious"]},
    }
    raw = json.dumps(
        {"model": "m", "state": {"mail": "Pay!"}, "instructions": "Be fair.", "questions": questions}
    )
    request = endpoint.parse(raw)
    work = endpoint.checked_engine_requests(request, served_model(tokenizer))
    first, second = (tokenizer.decode_all(work.prompt_of(part)) for part in work.parts)
    assert "Be fair." in first
    assert '{"mail": "Pay!"}\n\nQuestion: Who?\nA: billing (money)\nB: sales<' in first
    assert "\n\n0: calm\n1: furious<" in second
    scores = [[math.log(0.3), math.log(0.1)], [math.log(0.1), math.log(0.4)]]
    outcome = Outcome([Choice([], "length", scores=each) for each in scores], [[]] * 2, 50, 0)
    found = endpoint.response(
        ResponseHead(SYSTEMONE, "req_1", "m", 5), request, served_model(tokenizer), outcome
    )
    assert found["object"] == "structured_decision"
    assert found["answers"]["team"]["choice"] == "billing"
    assert found["answers"]["tone"]["score"] == pytest.approx(0.8)
    assert found["answers"]["tone"]["legend"] == {"0": "calm", "1": "furious"}
    assert found["diagnostics"]["team"]["label_mass"] == pytest.approx(0.4)


def test_systemone_names_a_label_that_is_not_one_token(tokenizer: ModelTokenizer) -> None:
    endpoint = endpoint_at(SYSTEMONE)
    request = endpoint.parse('{"model": "m", "state": "s", "questions": {"ok": {"type": "noul"}}}')
    assert len(tokenizer.encode_part("yes")[0]) > 1
    with pytest.raises(RequestError, match="label 'yes' is not a single token") as caught:
        endpoint.engine_requests(request, served_model(tokenizer))
    assert caught.value.param == "questions.ok"
