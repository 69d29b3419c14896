"""Prompts are asked about in groups that the engine accepts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bros_batch.web.part_groups import ask_in_groups
from engine.wire.limits import ModelLimits
from engine.wire.protocol import PartEnd, PartsFinished, SubmitParts
from engine.wire.request_problems import problem_with_submit_parts
from engine.wire.request_terms import Part, Sampling

LIMITS = ModelLimits(max_model_len=1_000_000, vocab_size=100)
SCORES = Sampling(max_tokens=0, score_token_ids=(5,))


@pytest.mark.parametrize(
    ("num_shared", "num_own", "num_parts"),
    [(0, 8, 300), (131_072, 0, 128), (900_000, 10, 5), (0, 600_000, 3), (10_000, 20_000, 120)],
)
async def test_the_engine_accepts_every_group(num_shared: int, num_own: int, num_parts: int) -> None:
    shared = [5] * num_shared
    parts = [Part([6] * num_own, SCORES) for _ in range(num_parts)]

    async def ask(group: Sequence[Part]) -> PartsFinished:
        assert problem_with_submit_parts(SubmitParts("a", shared, list(group)), LIMITS) is None
        return PartsFinished("a", [PartEnd(len(part.token_ids)) for part in group])

    assert len(await ask_in_groups(ask, parts, num_shared)) == num_parts
