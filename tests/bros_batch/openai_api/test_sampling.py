"""Sampling parameters, lane and SLO of requests."""

from __future__ import annotations

import pytest

from bros_batch.openai_api.sampling import fitted_sampling, lane_of, sampling_of, slo_of
from bros_batch.openai_api.sampling_defaults import SamplingDefaults
from bros_batch.request_error import RequestError
from engine.wire.request_terms import Slo
from tests.bros_batch.openai_api.factories import chat, completion

DEFAULTS = SamplingDefaults()


def test_sampling_has_every_field() -> None:
    request = chat(
        max_tokens=5, max_completion_tokens=9, min_tokens=2, temperature=0, top_p=0.5, top_k=-1, min_p=0.1, seed=-3,
        stop="END", stop_token_ids=[7], ignore_eos=True, repetition_penalty=1.5, presence_penalty=-1,
        frequency_penalty=2, logit_bias={"5": -100}, logprobs=True, top_logprobs=3,
    )  # fmt: skip
    sampling = sampling_of(request, DEFAULTS)
    assert (sampling.max_tokens, sampling.min_tokens, sampling.temperature, sampling.top_p) == (
        9,
        2,
        0.0,
        0.5,
    )
    assert (sampling.top_k, sampling.min_p, sampling.seed, sampling.stop) == (0, 0.1, -3, ("END",))
    assert (sampling.stop_token_ids, sampling.ignore_eos, sampling.repetition_penalty) == ((7,), True, 1.5)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (-1.0, 2.0)
    assert (sampling.logit_bias, sampling.logprobs) == (((5, -100.0),), 3)
    assert sampling_of(completion(logprobs=0), DEFAULTS).logprobs == 0


def test_lanes_and_slo() -> None:
    assert (
        lane_of(chat())
        == lane_of(chat(service_tier="default", priority=0))
        == lane_of(chat(priority=-1))
        == "rt"
    )
    assert lane_of(chat(service_tier="flex")) == lane_of(chat(priority=1)) == "be"
    slo = slo_of(chat(slo={"ttft_ms": 250, "tpot_ms": 50}))
    assert slo is not None
    assert (slo.ttft_s, slo.tpot_s) == (0.25, 0.05)
    assert slo_of(chat(slo={"slowdown": 0.05})) == Slo(slowdown=0.05)
    assert slo_of(chat()) is None


def test_the_output_length_fits_the_context() -> None:
    assert fitted_sampling(chat(), 90, max_model_len=100, defaults=DEFAULTS).max_tokens == 10
    assert fitted_sampling(chat(max_tokens=10), 90, max_model_len=100, defaults=DEFAULTS).max_tokens == 10
    for request, num_prompt_tokens in ((chat(max_tokens=11), 90), (chat(), 100), (chat(), 5000)):
        with pytest.raises(RequestError) as caught:
            fitted_sampling(request, num_prompt_tokens, max_model_len=100, defaults=DEFAULTS)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
        assert str(num_prompt_tokens) in caught.value.message
        # litellm's fallbacks look for this beginning, and langchain's for the code in the text.
        assert "context_length_exceeded" in caught.value.message
        assert caught.value.message.startswith("This model's maximum context length is 100 tokens")
    with pytest.raises(RequestError, match="no tokens"):
        fitted_sampling(completion(prompt=""), 0, max_model_len=100, defaults=DEFAULTS)


def test_choices_have_seeds_that_follow_each_other() -> None:
    seeded, unseeded = sampling_of(chat(seed=7), DEFAULTS), sampling_of(chat(), DEFAULTS)
    assert [seeded.for_choice(index).seed for index in range(3)] == [7, 8, 9]
    assert unseeded.for_choice(2) == unseeded
