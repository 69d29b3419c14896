"""The number of threads may change between steps: what is computed does not depend on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.core.terms import SamplingParams
from tests.engine.runner.driver import Driver, load_runner
from tests.engine.runner.test_exact import prompts
from tests.factories_models import make_model

WITH_LOGPROBS = SamplingParams(max_tokens=1000, temperature=0.0, ignore_eos=True, logprobs=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_output_is_the_same_on_any_number_of_threads(family: str, tmp_path: Path) -> None:
    path = make_model(family, tmp_path, seed=1)
    outputs, logprobs = [], []
    before = torch.get_num_threads()
    try:
        for counts in ((1, 1), (2, 1)):
            driver = Driver(load_runner(path), seed=2)
            sequences = [driver.add(prompt, WITH_LOGPROBS) for prompt in prompts(3)]
            for goal, count in zip((3, 8), counts, strict=True):
                torch.set_num_threads(count)
                driver.run(goal)
            outputs.append([sequence.output for sequence in sequences])
            logprobs.append([each.logprob for sequence in sequences for each in sequence.logprobs])
    finally:
        torch.set_num_threads(before)
    assert outputs[0] == outputs[1]
    assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-4)
