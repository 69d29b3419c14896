"""The reference against formulas written out by hand and against torch's own attention."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from engine.kernels.reference import attention as reference
from tests.engine.kernels.steps import Case, random_case


def by_hand(case: Case) -> torch.Tensor:
    """One query, one head, one key at a time, in Python floats."""
    window, softcap, sinks = case.options.window, case.options.softcap, case.options.sinks
    _, k_cache, v_cache = case.run(reference.attention)
    num_heads, num_kv_heads = case.q.shape[1], case.k.shape[1]
    out = torch.zeros(case.q.shape[0], num_heads, case.v.shape[2])
    for row, start, count, offset in case.layout.host.T.tolist():
        slots = case.layout.slot_table[row].tolist()
        for i in range(count):
            position = start + i
            for head in range(num_heads):
                kv_head = head // (num_heads // num_kv_heads)
                query = case.q[offset + i, head].tolist()
                weights, values = [], []
                for seen in range(position + 1):
                    if window is not None and position - seen >= window:
                        continue
                    key = k_cache[slots[seen], kv_head].tolist()
                    score = case.options.scale * sum(a * b for a, b in zip(query, key, strict=True))
                    if softcap is not None:
                        score = softcap * math.tanh(score / softcap)
                    weights.append(math.exp(score))
                    values.append(v_cache[slots[seen], kv_head])
                total = sum(weights) + (math.exp(sinks[head]) if sinks is not None else 0.0)
                for weight, value in zip(weights, values, strict=True):
                    out[offset + i, head] += weight / total * value
    return out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 5},
        {"softcap": 3.0},
        {"with_sinks": True},
        {"window": 1, "heads": (3, 1), "size_v": 4},
        {"window": 6, "softcap": 2.0, "with_sinks": True, "heads": (4, 4)},
    ],
)
def test_follows_the_formula(options: dict[str, object]) -> None:
    case = random_case(3, [(0, 4), (9, 1), (5, 3), (0, 1)], size=8, **options)  # type: ignore[arg-type]
    out, _, _ = case.run(reference.attention)
    torch.testing.assert_close(out, by_hand(case), rtol=1e-5, atol=1e-5)


def test_a_whole_prompt_is_torchs_causal_attention() -> None:
    case = random_case(1, [(0, 37)], heads=(4, 4))
    out, _, _ = case.run(reference.attention)
    q, k, v = (x.transpose(0, 1)[None] for x in (case.q, case.k, case.v))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)[0].transpose(0, 1)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_stores_the_steps_tokens_and_nothing_else() -> None:
    case = random_case(2, [(7, 1), (0, 20), (30, 5)])
    _, k_cache, v_cache = case.run(reference.attention)
    mapping = case.layout.slot_mapping
    assert torch.equal(k_cache[mapping], case.k)
    assert torch.equal(v_cache[mapping], case.v)
    untouched = torch.ones(len(k_cache), dtype=torch.bool)
    untouched[mapping] = False
    assert torch.equal(k_cache[untouched], case.k_cache[untouched])
    assert torch.equal(v_cache[untouched], case.v_cache[untouched])
