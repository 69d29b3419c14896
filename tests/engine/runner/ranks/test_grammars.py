"""Ranks that compute together follow grammars as one process does, and so do those that replace them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from engine.__main__ import make_runner
from engine.core.terms import FinishReason, Grammar, SamplingParams
from engine.runner.base import ModelRunner
from tests.engine.runner.ranks.test_parallel_runner import config_for, processes_of, prompts
from tests.factories import Outputs, Steps, request, scheduler_for
from tests.factories_grammars import SCHEMAS, schema_grammar
from tests.factories_models import make_model, make_tokenizer

pytest.importorskip("accelerate", reason="transformers splits models only where accelerate is installed")

GRAMMARS = [schema_grammar(SCHEMAS[i], compact=True) for i in (1, 8, 12, 14, 16)]


def outputs_of(runner: ModelRunner, *, ahead: bool, kill_after: int | None = None) -> list[list[int]]:
    scheduler, outputs = scheduler_for(runner.info), Outputs()
    futures = [runner.grammars.begin(grammar) for grammar in GRAMMARS]
    assert not any(future.result() for future in futures)
    own = [
        request(prompt, sampling=SamplingParams(max_tokens=16, temperature=0.0, grammar=grammar))
        for prompt, grammar in zip(prompts(3), GRAMMARS, strict=False)
    ]
    bad = request([5, 6], sampling=SamplingParams(max_tokens=4, grammar=Grammar("regex", "(")))
    for each in (*own, bad, request(prompts(3)[6], max_tokens=8)):
        scheduler.add(each)
    steps = Steps(scheduler, runner, outputs, ahead=ahead)
    if kill_after is not None:
        for _ in range(kill_after):
            steps.step()
        os.kill(processes_of(runner)[0].pid, signal.SIGKILL)
    steps.run_to_end()
    assert outputs.finished[bad.request_id].reason is FinishReason.ERROR
    return [outputs.token_ids[each.request_id] for each in own]


@pytest.mark.slow
def test_two_ranks_follow_grammars_as_one_process_does(tmp_path: Path) -> None:
    model = make_tokenizer(make_model("llama", tmp_path))
    alone = make_runner(config_for(model, size=1))
    expected = outputs_of(alone, ahead=False)
    alone.close()
    pair = make_runner(config_for(model))
    try:
        for ahead in (False, True):
            assert outputs_of(pair, ahead=ahead) == expected
        assert outputs_of(pair, ahead=True, kill_after=4) == expected
    finally:
        pair.close()
