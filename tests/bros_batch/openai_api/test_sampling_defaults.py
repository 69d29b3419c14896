"""What requests get that set no sampling parameters: the model's recommendation, within the settings."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from bros_batch.openai_api.sampling import fitted_sampling, sampling_of
from bros_batch.openai_api.sampling_defaults import SamplingDefaults, sampling_defaults
from bros_batch.settings import DEMO_MODEL_DIR, Settings
from bros_batch.text.generation_config import recommended_sampling
from bros_batch.text.tokenizer import ModelTokenizer, load_tokenizer
from tests.bros_batch.openai_api.factories import chat, completion
from tests.factories_text import make_text_model

QWEN = {
    "do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.05,
    "max_new_tokens": 40, "eos_token_id": [2], "pad_token_id": 0, "transformers_version": "4.51.0",
}  # fmt: skip


def defaults(config: dict[str, Any], **settings: Any) -> SamplingDefaults:
    return sampling_defaults(Settings(**settings), recommended_sampling(config))


def test_a_model_recommends_parameters_in_its_generation_config(tmp_path: Path) -> None:
    directory = make_text_model(tmp_path / "model")
    (directory / "generation_config.json").write_text(json.dumps(QWEN))
    recommended = ModelTokenizer(directory).recommended_sampling
    sampling = sampling_of(chat(), sampling_defaults(Settings(), recommended))
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.95, 20)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.max_tokens) == (0.1, 1.05, 40)
    off = sampling_defaults(Settings(generation_config="none"), recommended)
    assert sampling_of(chat(), off) == sampling_of(chat(), SamplingDefaults())


def test_a_request_precedes_the_recommendation() -> None:
    own: dict[str, Any] = {
        "temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1, "max_tokens": 99
    }  # fmt: skip
    assert sampling_of(chat(**own), defaults(QWEN)) == sampling_of(chat(**own), SamplingDefaults())
    assert sampling_of(chat(top_k=-1), defaults(QWEN)).top_k == 0


def test_the_output_length_of_a_request_that_names_none() -> None:
    def lengths(given: SamplingDefaults) -> list[int]:
        requests = (chat(), completion(), chat(max_tokens=-1), completion(max_tokens=None))
        return [fitted_sampling(each, 400, max_model_len=500, defaults=given).max_tokens for each in requests]

    assert lengths(SamplingDefaults()) == [100, 16, 100, 16]
    assert lengths(defaults(QWEN)) == [40, 16, 40, 16]
    assert lengths(defaults(QWEN, default_max_tokens=50)) == [50] * 4
    assert lengths(defaults(QWEN, default_max_tokens=5000)) == [100] * 4
    assert fitted_sampling(completion(), 490, max_model_len=500, defaults=SamplingDefaults()).max_tokens == 10


@pytest.mark.parametrize(
    "config",
    [
        {"temperature": -1},
        {"temperature": "hot"},
        {"temperature": float("nan")},
        {"top_p": 2, "min_p": True},
        {"top_k": 1.5},
        {"max_new_tokens": 0},
        {"repetition_penalty": 0},
    ],
)
def test_an_invalid_recommendation_is_logged_and_ignored(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert defaults(config) == SamplingDefaults()
    assert {name for name in config if name in caplog.text} == set(config)


def test_a_model_that_does_not_sample_is_decoded_greedily() -> None:
    assert defaults({"do_sample": False}).temperature == 0
    assert defaults({"do_sample": False, "temperature": 0.3}).temperature == 0.3
    assert defaults({"temperature": None, "top_k": None}) == SamplingDefaults()
    assert (
        sampling_defaults(Settings(), load_tokenizer(str(DEMO_MODEL_DIR)).recommended_sampling).temperature
        == 0
    )
