"""What may be asked about a prompt, and which parts an item may have."""

from __future__ import annotations

from typing import Any

import pytest

from engine.wire.item_messages import MAX_PARTS, ItemRequest
from engine.wire.limits import MAX_ITEM_TOKENS, MAX_PROMPT_LOGPROBS, ModelLimits
from engine.wire.request_problems import problem_with, problem_with_item
from engine.wire.request_terms import MAX_SCORES, Part, Sampling

LIMITS = ModelLimits(max_model_len=32, vocab_size=100)
LONG = ModelLimits(max_model_len=1_000_000, vocab_size=100)
SCORES = Sampling(max_tokens=0, score_token_ids=(5, 6))


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 0, "score_token_ids": (5, 99)},
        {"max_tokens": 0, "prompt_logprobs": 0},
        {"max_tokens": 5, "prompt_logprobs": 20},
        {"max_tokens": 0, "pooling": "mean"},
        {"max_tokens": 0, "pooling": "last", "score_token_ids": (1,), "prompt_logprobs": 3},
    ],
)
def test_questions_about_a_prompt(fields: dict[str, Any]) -> None:
    assert problem_with([5, 6, 7], Sampling(**fields), LIMITS) is None


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"max_tokens": 0}, "max_tokens", "at least 1, unless"),
        ({"max_tokens": 1, "score_token_ids": (5,)}, "max_tokens", "must be 0 with 'score_token_ids'"),
        ({"max_tokens": 1, "pooling": "last"}, "max_tokens", "must be 0 with 'pooling'"),
        ({"max_tokens": 0, "score_token_ids": (100,)}, "score_token_ids", "outside the vocabulary"),
        (
            {"max_tokens": 0, "score_token_ids": (1,) * (MAX_SCORES + 1)},
            "score_token_ids",
            f"at most {MAX_SCORES}",
        ),
        ({"max_tokens": 0, "prompt_logprobs": 21}, "prompt_logprobs", "from 0 to 20"),
        ({"max_tokens": 0, "prompt_logprobs": 1, "min_tokens": 1}, "min_tokens", "more than 'max_tokens'"),
        ({"max_tokens": 0, "pooling": "max"}, "pooling", "must be one of last, mean"),
    ],
)
def test_what_is_wrong_with_a_question(fields: dict[str, Any], param: str, message: str) -> None:
    problem = problem_with([5, 6, 7], Sampling(**fields), LIMITS)
    assert problem is not None
    assert (problem.code, problem.param) == ("invalid_request", param)
    assert message in problem.message


def test_a_prompt_may_fill_the_context_if_no_token_follows() -> None:
    assert problem_with([5] * 32, SCORES, LIMITS) is None
    too_long = problem_with([5] * 33, SCORES, LIMITS)
    assert too_long is not None
    assert too_long.code == "context_length_exceeded"
    assert problem_with([5] * 32, Sampling(max_tokens=1), LIMITS) is not None


def test_log_probabilities_must_fit_into_one_answer() -> None:
    asked = Sampling(max_tokens=0, prompt_logprobs=9)
    most = MAX_PROMPT_LOGPROBS // 10 + 1
    assert problem_with([5] * most, asked, LONG) is None
    problem = problem_with([5] * (most + 1), asked, LONG)
    assert problem is not None
    assert problem.param == "prompt_logprobs"


def item(parts: list[Part], shared: list[int] | None = None, n: int = 1) -> ItemRequest:
    return ItemRequest(
        1, 1, "job", [7, 8] if shared is None else shared, Sampling(max_tokens=1), n=n, parts=parts
    )


def test_parts_that_an_item_may_have() -> None:
    assert problem_with_item(item([Part([], SCORES)]), LIMITS) is None
    assert problem_with_item(item([Part([5], Sampling(max_tokens=3))] * 3, shared=[], n=2), LIMITS) is None
    assert problem_with_item(item([Part([5], SCORES)] * MAX_PARTS), LIMITS) is None


@pytest.mark.parametrize(
    ("wrong", "param", "message"),
    [
        (item([Part([5], SCORES)] * (MAX_PARTS // 2 + 1), n=2), "parts", f"at most {MAX_PARTS}"),
        (
            item([Part([5], SCORES)] * 2, shared=[5] * MAX_ITEM_TOKENS),
            "parts",
            f"at most {MAX_ITEM_TOKENS}",
        ),
        (
            item([Part([5], SCORES), Part([], SCORES)], shared=[]),
            "parts[1].token_ids",
            "Part 1: The prompt is",
        ),
        (item([Part([5] * 31, SCORES)]), "parts[0].token_ids", "maximum context length is 32"),
        (item([Part([100], SCORES)]), "parts[0].token_ids", "Token id 100"),
        (item([Part([5], SCORES)], shared=[-1]), "token_ids", "Token id -1"),
        (item([Part([5], Sampling(max_tokens=0))]), "parts[0].max_tokens", "Part 0: 'max_tokens'"),
        (item([Part([5], SCORES)], n=0), "n", "from 1"),
    ],
)
def test_what_is_wrong_with_parts(wrong: ItemRequest, param: str, message: str) -> None:
    problem = problem_with_item(wrong, LIMITS)
    assert problem is not None
    assert problem.param == param
    assert message in problem.message


def test_the_log_probabilities_of_all_parts_count() -> None:
    asked = Sampling(max_tokens=0, prompt_logprobs=19)
    parts = [Part([5] * 100, asked)] * 10
    assert problem_with_item(item(parts, shared=[5] * 1000), LONG) is None
    problem = problem_with_item(item(parts, shared=[5] * 2500), LONG)
    assert problem is not None
    assert problem.param == "prompt_logprobs"
