"""The probabilities of decisions equal those of transformers in float32."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bros_batch.demo.documents import HELD_OUT_SEED, generate_documents
from bros_batch.openai_api.completion_response import ResponseHead
from bros_batch.openai_api.endpoint import Outcome
from bros_batch.openai_api.endpoints import DECISIONS
from bros_batch.openai_api.registry import endpoint_at
from bros_batch.settings import DEMO_MODEL_DIR
from bros_batch.text.tokenizer import load_tokenizer
from engine.core.terms import Lane, SamplingParams
from engine.wire.item_messages import Choice
from tests.bros_batch.openai_api.factories import served_model
from tests.engine.runner.driver import load_runner
from tests.factories import request, run_to_end, scheduler_for

INSTRUCTION = (
    "Read the text. Answer the question after it with the label of one option and nothing else. "
    "If the question lists none, the options are:\nA: true\nB: false"
)
PREDICATES = ("The document is an invoice.", "The amount is in euros.", "It was paid in 2021.")
QUESTIONS: list[dict[str, Any]] = [
    *({"type": "predicate", "instructions": text} for text in PREDICATES),
    {
        "type": "choice",
        "instructions": "Which currency?",
        "choices": [{"value": "EUR"}, {"value": "USD"}, {"value": "GBP"}],
    },
    {"type": "score", "instructions": "How large?", "levels": [{"label": "small"}, {"label": "large"}]},
]
# What follows the document, and the labels.
ASKED = [
    *((f"Question: {text}", "AB") for text in PREDICATES),
    ("Question: Which currency?\nA: EUR\nB: USD\nC: GBP", "ABC"),
    ("Question: How large?\nA: small\nB: large", "AB"),
]


def probabilities_of(answer: dict[str, Any]) -> list[float]:
    if answer["type"] == "predicate":
        return [answer["probability"], 1 - answer["probability"]]
    return [each["probability"] for each in answer["probabilities"]]


@pytest.mark.parametrize("lane", Lane)
def test_probabilities_equal_those_of_transformers(lane: Lane) -> None:
    texts = [document.text for document in generate_documents(4, HELD_OUT_SEED)]
    endpoint, tokenizer = endpoint_at(DECISIONS), load_tokenizer(str(DEMO_MODEL_DIR))
    model = served_model(tokenizer, 1024)
    bodies = [{"model": "m", "input": text, "questions": QUESTIONS} for text in texts]
    asked = [endpoint.parse(json.dumps(body)) for body in bodies]
    work = [endpoint.checked_engine_requests(each, model) for each in asked]
    runner = load_runner(DEMO_MODEL_DIR, num_kv_blocks=200, max_model_len=1024, dtype="float32")
    scheduler = scheduler_for(runner.info, max_num_batched_tokens=256)
    reads = [
        [
            request(
                requests.prompt_of(part),
                lane=lane,
                sampling=SamplingParams(max_tokens=0, score_token_ids=part.sampling.score_token_ids),
            )
            for part in requests.parts
        ]
        for requests in work
    ]
    for requests in reads:
        for each in requests:
            scheduler.add(each)
    ends = run_to_end(scheduler, runner).finished
    num_cached = 0

    theirs = AutoModelForCausalLM.from_pretrained(DEMO_MODEL_DIR, dtype=torch.float32)
    their_tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_DIR)
    for text, parsed, requests in zip(texts, asked, reads, strict=True):
        results = [ends[each.request_id] for each in requests]
        num_cached += sum(end.num_cached_tokens for end in results)
        choices = [Choice([], "length", scores=list(end.prompt.scores)) for end in results]  # type: ignore[union-attr, arg-type]
        outcome = Outcome(choices, [[]] * len(choices), 0, 0)
        found = endpoint.response(ResponseHead(DECISIONS, "req_1", "m", 0), parsed, model, outcome)["answers"]
        for (question, labels), answer in zip(ASKED, found, strict=True):
            message = {"role": "user", "content": f"{INSTRUCTION}\n\n{text}\n\n{question}"}
            prompt = their_tokenizer.apply_chat_template(
                [message], tokenize=False, add_generation_prompt=True
            )
            ids = their_tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
            label_ids = their_tokenizer.convert_tokens_to_ids(list(labels))
            with torch.inference_mode():
                all_probabilities = theirs(input_ids=ids).logits[0, -1].softmax(-1)
            of_labels = all_probabilities[label_ids]
            assert probabilities_of(answer) == pytest.approx((of_labels / of_labels.sum()).tolist(), abs=1e-4)
            if answer["type"] != "predicate":
                assert answer["confidence"] == pytest.approx(float(of_labels.max()), abs=1e-4)
    assert num_cached > sum(len(each.shared_ids) * (len(each.parts) - 2) for each in work), (
        "nothing was shared"
    )
