"""Conversions between the wire's types and the core's, which share names and meanings but no code."""

from __future__ import annotations

import time
from functools import lru_cache

import msgspec
import numpy as np

from engine.core.events import FinishedEvent, TokenEvent
from engine.core.terms import SLO, SamplingParams
from engine.core.terms import Grammar as CoreGrammar
from engine.wire.request_terms import Grammar, PositionLogprobs, PromptLogprobs, Sampling, Slo


def core_slo(slo: Slo | None, default: SLO) -> SLO:
    """Convert an SLO to the core's type. `default` applies if there is none, and its times order a request that names
    only a slowdown."""
    if slo is None:
        return default
    if slo.ttft_s is None or slo.tpot_s is None:
        return SLO(default.ttft_s, default.tpot_s, slo.slowdown)
    return SLO(slo.ttft_s, slo.tpot_s)


def core_grammar(grammar: Grammar) -> CoreGrammar:
    """Convert a grammar to the core's type."""
    return CoreGrammar(grammar.kind, grammar.text)


def sampling_params(sampling: Sampling, grammar: CoreGrammar | None = None) -> SamplingParams:
    """Convert sampling parameters to the core's type; the fields and defaults are the same. `grammar` is what the
    grammar of `sampling` was compiled as, if it was."""
    if sampling.grammar is None:
        return _without_grammar(sampling)
    values = msgspec.structs.asdict(sampling)
    values["grammar"] = grammar or core_grammar(sampling.grammar)
    return SamplingParams(**values)


@lru_cache(maxsize=64)  # most requests of a job have the same
def _without_grammar(sampling: Sampling) -> SamplingParams:
    return SamplingParams(**msgspec.structs.asdict(sampling))


def position_logprobs(event: TokenEvent) -> PositionLogprobs | None:
    """Convert the log-probabilities of an event to the wire's type; None if it has none."""
    if event.logprobs is None:
        return None
    return PositionLogprobs(event.logprobs.logprob, event.logprobs.top)


def scores(event: FinishedEvent) -> list[float] | None:
    """The log-probabilities of `score_token_ids`; None if there are none."""
    prompt = event.prompt
    return None if prompt is None or prompt.scores is None else list(prompt.scores)


def prompt_logprobs(event: FinishedEvent) -> PromptLogprobs | None:
    """The log-probabilities of the prompt in the wire's type; None if there are none."""
    prompt = event.prompt
    if prompt is None or prompt.logprobs is None:
        return None
    num_positions = event.num_prompt_tokens - 1
    num_numbers = len(prompt.logprobs) // (4 * num_positions) if num_positions else 1  # per position
    return PromptLogprobs((num_numbers - 1) // 2, prompt.logprobs)


def embedding(event: FinishedEvent, sampling: Sampling) -> bytes | None:
    """The pooled hidden state as little-endian float32; None if there is none."""
    prompt = event.prompt
    if prompt is None or not prompt.hidden:
        return None
    total = np.sum([np.frombuffer(part, dtype="<f4") for part in prompt.hidden], axis=0, dtype=np.float32)
    if sampling.pooling == "mean":
        total /= np.float32(event.num_prompt_tokens)
    return total.astype("<f4").tobytes()


def monotonic_deadline_s(deadline_unix_s: float | None, now_s: float) -> float | None:
    """Convert a deadline from Unix time to the monotonic clock, which currently shows `now_s`."""
    return None if deadline_unix_s is None else deadline_unix_s - time.time() + now_s
