"""What is wrong with the sampling parameters of a request, and with what it asks about its prompt."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

from engine.wire.limits import BIAS_RANGE, GRAMMAR_KINDS, POOLINGS, SAMPLING_RANGES, EngineLimits
from engine.wire.problem import Problem, foreign_token, invalid, not_in_vocabulary, out_of_range, too_many
from engine.wire.request_terms import (
    MAX_GRAMMAR_CHARS,
    MAX_LOGIT_BIASES,
    MAX_SCORES,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    Grammar,
    Sampling,
)


def sampling_problem(sampling: Sampling, limits: EngineLimits) -> Problem | None:
    """What is wrong with sampling parameters, or None."""
    if sampling.grammar is not None:  # its text may be long
        return _sampling_problem(sampling, limits.vocab_size)
    return _known_problem(sampling, limits.vocab_size)


def _sampling_problem(sampling: Sampling, vocab_size: int) -> Problem | None:
    for name, valid in SAMPLING_RANGES.items():
        value = getattr(sampling, name)
        if value is not None and not valid.least <= value <= valid.most:
            return out_of_range(name, value, valid)
    if problem := _prompt_question_problem(sampling, vocab_size):
        return problem
    if sampling.min_tokens > sampling.max_tokens:
        text = (
            f"'min_tokens' is {sampling.min_tokens}, more than 'max_tokens', which is {sampling.max_tokens}."
        )
        return invalid("min_tokens", text)
    if sampling.stop:
        if len(sampling.stop) > MAX_STOP_STRINGS:
            return too_many("stop", "strings", len(sampling.stop), MAX_STOP_STRINGS)
        longest = max(map(len, sampling.stop))
        if longest > MAX_STOP_CHARS:
            text = f"'stop' has a string of {longest} characters; at most {MAX_STOP_CHARS} are allowed."
            return invalid("stop", text)
    if sampling.stop_token_ids:
        if len(sampling.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            return too_many("stop_token_ids", "entries", len(sampling.stop_token_ids), MAX_STOP_TOKEN_IDS)
        foreign = foreign_token(sampling.stop_token_ids, vocab_size)
        if foreign is not None:
            return not_in_vocabulary("stop_token_ids", foreign, vocab_size)
    if sampling.logit_bias:
        problem = _bias_problem(sampling.logit_bias, vocab_size)
        if problem is not None:
            return problem
    if sampling.grammar is not None:
        return _grammar_problem(sampling.grammar)
    return None


_known_problem = lru_cache(maxsize=64)(_sampling_problem)  # most requests of a job have the same parameters


def _grammar_problem(grammar: Grammar) -> Problem | None:
    """Whether the grammar compiles is known only to the engine, which tells it after a while."""
    if grammar.kind not in GRAMMAR_KINDS:
        return invalid(
            "grammar", f"'grammar' must be one of {', '.join(GRAMMAR_KINDS)}, not {grammar.kind!r}."
        )
    if not grammar.text:
        return invalid("grammar", "'grammar' is empty.")
    if len(grammar.text) > MAX_GRAMMAR_CHARS:
        text = f"'grammar' has {len(grammar.text)} characters; at most {MAX_GRAMMAR_CHARS} are allowed."
        return invalid("grammar", text)
    return None


def _prompt_question_problem(sampling: Sampling, vocab_size: int) -> Problem | None:
    """What is wrong with what is asked about the prompt, or with asking for nothing, or None."""
    scored = sampling.score_token_ids
    if scored:
        if len(scored) > MAX_SCORES:
            return too_many("score_token_ids", "entries", len(scored), MAX_SCORES)
        foreign = foreign_token(scored, vocab_size)
        if foreign is not None:
            return not_in_vocabulary("score_token_ids", foreign, vocab_size)
    if sampling.pooling is not None and sampling.pooling not in POOLINGS:
        return invalid("pooling", f"'pooling' must be one of {', '.join(POOLINGS)}, not {sampling.pooling}.")
    if sampling.max_tokens and (scored or sampling.pooling is not None):
        name = "score_token_ids" if scored else "pooling"
        return invalid("max_tokens", f"'max_tokens' must be 0 with '{name}', not {sampling.max_tokens}.")
    if (
        not sampling.max_tokens
        and not scored
        and sampling.pooling is None
        and sampling.prompt_logprobs is None
    ):
        text = (
            "'max_tokens' must be at least 1, unless the request asks for 'score_token_ids', 'prompt_logprobs' or "
            "'pooling'."
        )
        return invalid("max_tokens", text)
    return None


def _bias_problem(biases: Collection[tuple[int, float]], vocab_size: int) -> Problem | None:
    if len(biases) > MAX_LOGIT_BIASES:
        return too_many("logit_bias", "entries", len(biases), MAX_LOGIT_BIASES)
    foreign = foreign_token([token_id for token_id, _ in biases], vocab_size)
    if foreign is not None:
        return not_in_vocabulary("logit_bias", foreign, vocab_size)
    least, most = BIAS_RANGE
    for token_id, bias in biases:
        if not least <= bias <= most:
            text = f"'logit_bias' must have biases from {least:g} to {most:g}, but token {token_id} has {bias:g}."
            return invalid("logit_bias", text)
    return None
