"""Two ranks together read from prompts what transformers computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.core.terms import FinishReason
from tests.engine.runner.ranks.test_parallel_runner import config_for, running
from tests.engine.runner.test_prompt_reading import Own, answers, assert_equal, loads
from tests.factories_models import make_model, own_model

pytest.importorskip("accelerate", reason="transformers splits models only where accelerate is installed")


def test_answers_of_two_ranks_equal_those_of_transformers(tmp_path: Path) -> None:
    path = make_model("llama", tmp_path, seed=1)
    requests = loads(seed=5)
    prompts = {each.request_id: list(each.token_ids) for each in requests}
    with running(config_for(path, block_size=4, num_kv_blocks=20, max_model_len=96)) as runner:
        assert runner.info.hidden_size == 64
        outputs, _ = answers(runner, requests, ahead=True)
    reference = own_model(path)
    for each in requests:
        end = outputs.finished[each.request_id]
        assert end.reason is FinishReason.LENGTH
        if each.sampling.asks_about_prompt:
            prompt = prompts[each.request_id]
            assert_equal(end.prompt, each.sampling, prompt, Own.of(reference, prompt), tolerance=2e-5)
