"""A line of a job that no engine can compute is told so when it is prepared, by the name of the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bros_batch.documents.form import BATCH
from bros_batch.documents.item_requests import job_requests
from bros_batch.openai_api.endpoints import CHAT_COMPLETIONS, COMPLETIONS
from bros_batch.request_error import RequestError
from bros_batch.text.tokenizer import ModelTokenizer
from tests.bros_batch.openai_api.factories import served_model
from tests.factories_text import make_text_model

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    return ModelTokenizer(make_text_model(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("stop_token_ids", {"min_tokens": 1, "stop_token_ids": [151_645]}),
        ("logit_bias", {"logit_bias": {"191222": -100}}),
        ("repetition_penalty", {"repetition_penalty": 1e-300}),
    ],
)
def test_a_line_that_no_engine_can_compute(
    tokenizer: ModelTokenizer, param: str, fields: dict[str, Any]
) -> None:
    requests = job_requests(CHAT_COMPLETIONS, "m", BATCH, {})
    model = served_model(tokenizer)
    with pytest.raises(RequestError) as caught:
        requests.engine_requests(model, json.dumps({**CHAT, **fields}), 1)
    assert (caught.value.param, caught.value.code) == (param, "invalid_request")
    assert caught.value.message.startswith(f"'{param}' ")
    assert requests.engine_requests(model, json.dumps(CHAT), 1).shared_ids


def test_log_probabilities_of_the_prompt_count_for_each_choice(tokenizer: ModelTokenizer) -> None:
    requests = job_requests(COMPLETIONS, "m", BATCH, {})
    model = served_model(tokenizer)
    line = {"model": "m", "prompt": [5] * 400, "max_tokens": 0, "prompt_logprobs": 20}
    assert requests.engine_requests(model, json.dumps({**line, "n": 59}), 1).num_choices == 59
    with pytest.raises(RequestError, match="at most 500000") as caught:
        requests.engine_requests(model, json.dumps({**line, "n": 60}), 1)
    assert caught.value.param == "prompt_logprobs"
    with pytest.raises(RequestError, match="at most 500000"):
        requests.engine_requests(model, json.dumps({**line, "prompt": [[5] * 400] * 2, "n": 30}), 1)
