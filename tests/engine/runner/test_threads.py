"""The number of threads may change between steps: what is computed does not depend on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.core.terms import SamplingParams
from tests.engine.runner.driver import Driver, load_runner
from tests.engine.runner.test_exact import prompts
from tests.factories_models import make_model

WITH_LOGPROBS = SamplingParams(max_tokens=1000, temperature=0.0, ignore_eos=True, logprobs=5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_logprobs_are_the_same_on_any_number_of_threads(family: str, tmp_path: Path) -> None:
    path = make_model(family, tmp_path, seed=1)
    found = []
    before = torch.get_num_threads()
    try:
        for counts in ((1, 1, 1), (2, 2, 2), (2, 1, 2)):
            driver = Driver(load_runner(path), seed=2)
            sequences = [driver.add(prompt, WITH_LOGPROBS) for prompt in prompts(3)]
            for goal, count in zip((4, 8, 16), counts, strict=True):
                torch.set_num_threads(count)
                driver.run(goal)
            found.append([(sequence.output, sequence.logprobs) for sequence in sequences])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]
