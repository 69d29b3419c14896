"""Token ids of the prompts of requests."""

from __future__ import annotations

from bros_batch.openai_api.prompts import encode_prompts
from bros_batch.openai_api.registry import parse_body
from bros_batch.text.tokenizer import ModelTokenizer


def test_requests_become_prompts(tokenizer: ModelTokenizer) -> None:
    one = parse_body("/v1/completions", '{"model": "m", "prompt": "a"}')
    several = parse_body("/v1/completions", '{"model": "m", "prompt": ["a", "b c"]}')
    ids = parse_body("/v1/completions", '{"model": "m", "prompt": [5, 6]}')
    lists = parse_body("/v1/completions", '{"model": "m", "prompt": [[5], [6, 7]]}')
    assert encode_prompts(tokenizer, one) == [tokenizer.encode_prompt("a")]
    assert encode_prompts(tokenizer, several) == [
        tokenizer.encode_prompt("a"),
        tokenizer.encode_prompt("b c"),
    ]
    assert (encode_prompts(tokenizer, ids), encode_prompts(tokenizer, lists)) == ([[5, 6]], [[5], [6, 7]])
