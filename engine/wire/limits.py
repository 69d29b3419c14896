"""The judge of requests: whether an engine can compute a request as it stands, and what is wrong with it otherwise.

The engine judges every request before it starts it, whether it came over the socket or from Redis. The web process and
the workers call the same functions with the limits that they know, so that a client learns of a mistake before anything
is sent. Nothing that passes here can make a step fail, and no value of one request can change another's output.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol, get_args

from engine.wire.protocol import (
    MAX_GRAMMAR_CHARS,
    MAX_LOGIT_BIASES,
    MAX_PARTS,
    MAX_PARTS_AT_ONCE,
    MAX_SCORES,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    Grammar,
    GrammarKind,
    ItemRequest,
    Part,
    Sampling,
    Slo,
    Submit,
    SubmitParts,
)

MAX_TOKENS = 2**31 - 1
MAX_CHOICES = 128
MAX_PRIORITY = 1_000_000
MAX_LOGPROBS = 20
GRAMMAR_KINDS: tuple[str, ...] = get_args(GrammarKind)
# Of a whole item: log-probabilities of prompt tokens, which have to fit into a frame, and tokens of all its prompts, of
# which the engine keeps lists.
MAX_PROMPT_LOGPROBS = 500_000
MAX_ITEM_TOKENS = 4_000_000


class Range(NamedTuple):
    """An interval of valid numbers, both ends included. It contains neither NaN nor infinity."""

    least: float
    most: float

    def has(self, value: float) -> bool:
        return self.least <= value <= self.most


# Whatever a sampler computes from values in these ranges in float32 is finite.
SAMPLING_RANGES = {
    "max_tokens": Range(0, MAX_TOKENS),
    "min_tokens": Range(0, MAX_TOKENS),
    "temperature": Range(0, 100),
    "top_p": Range(0, 1),
    "top_k": Range(0, MAX_TOKENS),
    "min_p": Range(0, 1),
    "seed": Range(-(2**63), 2**64 - 1),
    "repetition_penalty": Range(0.01, 100),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    "logprobs": Range(0, MAX_LOGPROBS),
    "prompt_logprobs": Range(0, MAX_LOGPROBS),
}
POOLINGS = ("last", "mean")
BIAS_RANGE = Range(-100, 100)
SLO_RANGE_S = Range(0.001, 3600)
SLOWDOWN_RANGE = Range(0.001, 100)
PRIORITY_RANGE = Range(-MAX_PRIORITY, MAX_PRIORITY)
DEADLINE_RANGE_S = Range(0, 1e11)  # in Unix time
CHOICES_RANGE = Range(1, MAX_CHOICES)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a request cannot be computed: one of the codes of `Rejected`, a sentence, and the field at fault.

    If that is a field of one part of an item, `of_part` has its number, and the problem as if it were the whole prompt.
    """

    code: str
    message: str
    param: str
    of_part: tuple[int, Problem] | None = None


class EngineLimits(Protocol):
    """What an engine has, as `Welcome` tells it."""

    @property
    def max_model_len(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """The limits of a model whose engine has not been asked."""

    max_model_len: int
    vocab_size: int


def problem_with_submit(request: Submit, limits: EngineLimits) -> Problem | None:
    """What is wrong with a request from the socket, or None."""
    return (
        problem_with(request.token_ids, request.sampling, limits, request.slo)
        or _out_of_range("priority", request.priority, PRIORITY_RANGE)
        or _deadline_problem(request.deadline_unix_s)
    )


def problem_with_submit_parts(request: SubmitParts, limits: EngineLimits) -> Problem | None:
    """What is wrong with a request of several prompts from the socket, or None."""
    parts = request.parts
    if not 1 <= len(parts) <= MAX_PARTS_AT_ONCE:
        return _invalid("parts", f"'parts' has {len(parts)} parts; it must have 1 to {MAX_PARTS_AT_ONCE}.")
    for number, part in enumerate(parts):
        if most := part.sampling.max_tokens:
            text = f"'parts[{number}].max_tokens' is {most}; parts generate no tokens, so it must be 0."
            return _invalid(f"parts[{number}].max_tokens", text)
    return (
        _parts_problem(request.token_ids, parts, 1, limits)
        or slo_problem(request.slo)
        or _out_of_range("priority", request.priority, PRIORITY_RANGE)
    )


def problem_with_item(item: ItemRequest, limits: EngineLimits) -> Problem | None:
    """What is wrong with an item of a job, or None."""
    return (
        (
            _parts_problem(item.token_ids, item.parts, item.n, limits)
            if item.parts
            else problem_with(item.token_ids, item.sampling, limits)
        )
        or _out_of_range("n", item.n, CHOICES_RANGE)
        or _too_many_logprobs(_num_prompt_logprobs(len(item.token_ids), item.sampling) * item.n)
        or _out_of_range("priority", item.priority, PRIORITY_RANGE)
        or _deadline_problem(item.deadline_unix_s)
    )


def problem_with(
    token_ids: Collection[int], sampling: Sampling, limits: EngineLimits, slo: Slo | None = None
) -> Problem | None:
    """What is wrong with a prompt, its sampling parameters and its SLO, or None."""
    return (
        _length_problem(len(token_ids), sampling, limits)
        or _vocabulary_problem(token_ids, limits)
        or sampling_problem(sampling, limits)
        or _too_many_logprobs(_num_prompt_logprobs(len(token_ids), sampling))
        or slo_problem(slo)
    )


def _parts_problem(
    shared_ids: Collection[int], parts: Sequence[Part], num_choices: int, limits: EngineLimits
) -> Problem | None:
    """What is wrong with parts, of which there is at least one, each with so many outputs, or None."""
    num_shared = len(shared_ids)
    if len(parts) * num_choices > MAX_PARTS:
        text = (
            f"'parts' has {len(parts)} parts with {num_choices} outputs each; "
            f"at most {MAX_PARTS} outputs are allowed."
        )
        return _invalid("parts", text)
    num_tokens = sum(num_shared + len(part.token_ids) for part in parts) * num_choices
    if num_tokens > MAX_ITEM_TOKENS:
        text = f"'parts' has prompts of {num_tokens} tokens together; at most {MAX_ITEM_TOKENS} are allowed."
        return _invalid("parts", text)
    if num_shared and (problem := _vocabulary_problem(shared_ids, limits)):
        return problem
    num_logprobs = 0
    for number, part in enumerate(parts):
        if problem := _part_problem(num_shared, part, limits):
            return Problem(
                problem.code,
                f"Part {number}: {problem.message}",
                f"parts[{number}].{problem.param}",
                (number, problem),
            )
        num_logprobs += _num_prompt_logprobs(num_shared + len(part.token_ids), part.sampling) * num_choices
    return _too_many_logprobs(num_logprobs)


def _part_problem(num_shared: int, part: Part, limits: EngineLimits) -> Problem | None:
    return (
        _length_problem(num_shared + len(part.token_ids), part.sampling, limits)
        or (_vocabulary_problem(part.token_ids, limits) if part.token_ids else None)
        or sampling_problem(part.sampling, limits)
    )


def _length_problem(num_tokens: int, sampling: Sampling, limits: EngineLimits) -> Problem | None:
    most = limits.max_model_len
    if not num_tokens:
        return _invalid("token_ids", "The prompt is empty; send at least one token.")
    if num_tokens + (sampling.max_tokens > 0) > most:
        return Problem(
            "context_length_exceeded",
            f"This model's maximum context length is {most} tokens, prompt and output together, but the prompt has "
            f"{num_tokens} tokens. Shorten the prompt (context_length_exceeded).",
            "token_ids",
        )
    return None


def _vocabulary_problem(token_ids: Collection[int], limits: EngineLimits) -> Problem | None:
    foreign = _foreign(token_ids, limits.vocab_size)
    if foreign is not None:
        return _invalid(
            "token_ids", f"Token id {foreign} is outside the vocabulary of {limits.vocab_size} tokens."
        )
    return None


def _num_prompt_logprobs(num_tokens: int, sampling: Sampling) -> int:
    """How many log-probabilities of prompt tokens are asked for."""
    return 0 if sampling.prompt_logprobs is None else (num_tokens - 1) * (sampling.prompt_logprobs + 1)


def _too_many_logprobs(number: int) -> Problem | None:
    if number <= MAX_PROMPT_LOGPROBS:
        return None
    text = (
        f"'prompt_logprobs' asks for {number} log-probabilities; at most {MAX_PROMPT_LOGPROBS} fit into one answer. "
        "Ask for fewer likeliest tokens, or shorten the prompt."
    )
    return _invalid("prompt_logprobs", text)


def sampling_problem(sampling: Sampling, limits: EngineLimits) -> Problem | None:
    """What is wrong with sampling parameters, or None."""
    if sampling.grammar is not None:  # its text may be long
        return _sampling_problem(sampling, limits.vocab_size)
    return _known_problem(sampling, limits.vocab_size)


def _sampling_problem(sampling: Sampling, vocab_size: int) -> Problem | None:
    for name, valid in SAMPLING_RANGES.items():
        value = getattr(sampling, name)
        if value is not None and not valid.least <= value <= valid.most:
            return _out_of_range(name, value, valid)
    if problem := _prompt_question_problem(sampling, vocab_size):
        return problem
    if sampling.min_tokens > sampling.max_tokens:
        text = (
            f"'min_tokens' is {sampling.min_tokens}, more than 'max_tokens', which is {sampling.max_tokens}."
        )
        return _invalid("min_tokens", text)
    if sampling.stop:
        if len(sampling.stop) > MAX_STOP_STRINGS:
            return _too_many("stop", "strings", len(sampling.stop), MAX_STOP_STRINGS)
        longest = max(map(len, sampling.stop))
        if longest > MAX_STOP_CHARS:
            text = f"'stop' has a string of {longest} characters; at most {MAX_STOP_CHARS} are allowed."
            return _invalid("stop", text)
    if sampling.stop_token_ids:
        if len(sampling.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            return _too_many("stop_token_ids", "entries", len(sampling.stop_token_ids), MAX_STOP_TOKEN_IDS)
        foreign = _foreign(sampling.stop_token_ids, vocab_size)
        if foreign is not None:
            return _not_in_vocabulary("stop_token_ids", foreign, vocab_size)
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
        return _invalid(
            "grammar", f"'grammar' must be one of {', '.join(GRAMMAR_KINDS)}, not {grammar.kind!r}."
        )
    if not grammar.text:
        return _invalid("grammar", "'grammar' is empty.")
    if len(grammar.text) > MAX_GRAMMAR_CHARS:
        text = f"'grammar' has {len(grammar.text)} characters; at most {MAX_GRAMMAR_CHARS} are allowed."
        return _invalid("grammar", text)
    return None


def _prompt_question_problem(sampling: Sampling, vocab_size: int) -> Problem | None:
    """What is wrong with what is asked about the prompt, or with asking for nothing, or None."""
    scored = sampling.score_token_ids
    if scored:
        if len(scored) > MAX_SCORES:
            return _too_many("score_token_ids", "entries", len(scored), MAX_SCORES)
        foreign = _foreign(scored, vocab_size)
        if foreign is not None:
            return _not_in_vocabulary("score_token_ids", foreign, vocab_size)
    if sampling.pooling is not None and sampling.pooling not in POOLINGS:
        return _invalid("pooling", f"'pooling' must be one of {', '.join(POOLINGS)}, not {sampling.pooling}.")
    if sampling.max_tokens and (scored or sampling.pooling is not None):
        name = "score_token_ids" if scored else "pooling"
        return _invalid("max_tokens", f"'max_tokens' must be 0 with '{name}', not {sampling.max_tokens}.")
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
        return _invalid("max_tokens", text)
    return None


def _bias_problem(biases: Collection[tuple[int, float]], vocab_size: int) -> Problem | None:
    if len(biases) > MAX_LOGIT_BIASES:
        return _too_many("logit_bias", "entries", len(biases), MAX_LOGIT_BIASES)
    foreign = _foreign([token_id for token_id, _ in biases], vocab_size)
    if foreign is not None:
        return _not_in_vocabulary("logit_bias", foreign, vocab_size)
    least, most = BIAS_RANGE
    for token_id, bias in biases:
        if not least <= bias <= most:
            text = f"'logit_bias' must have biases from {least:g} to {most:g}, but token {token_id} has {bias:g}."
            return _invalid("logit_bias", text)
    return None


def slo_problem(slo: Slo | None) -> Problem | None:
    """What is wrong with an SLO, or None."""
    if slo is None:
        return None
    if slo.slowdown is not None:
        if slo.ttft_s is not None or slo.tpot_s is not None:
            return _invalid("slo", "'slo' must have either a slowdown or two times, not both.")
        if not SLOWDOWN_RANGE.has(slo.slowdown):
            least, most = SLOWDOWN_RANGE
            return _invalid(
                "slo", f"'slo' must have a slowdown from {least:g} to {most:g}, not {slo.slowdown:g}."
            )
        return None
    least, most = SLO_RANGE_S
    for what, value in (("time to first token", slo.ttft_s), ("time per output token", slo.tpot_s)):
        if value is None:
            return _invalid("slo", f"'slo' must have a {what}, or a slowdown instead of both times.")
        if not SLO_RANGE_S.has(value):
            text = f"'slo' must have a {what} from {least * 1000:g} ms to {most:g} s, not {value:g} s."
            return _invalid("slo", text)
    return None


def _deadline_problem(deadline_unix_s: float | None) -> Problem | None:
    if deadline_unix_s is None:
        return None
    return _out_of_range("deadline_unix_s", deadline_unix_s, DEADLINE_RANGE_S)


def _foreign(token_ids: Collection[int], vocab_size: int) -> int | None:
    """The least id below 0, or else the largest beyond the vocabulary, or None."""
    least, most = min(token_ids), max(token_ids)
    if least < 0:
        return least
    return most if most >= vocab_size else None


def _not_in_vocabulary(param: str, token_id: int, vocab_size: int) -> Problem:
    text = f"'{param}' has token id {token_id}, which is outside the vocabulary of {vocab_size} tokens."
    return _invalid(param, text)


def _out_of_range(param: str, value: float, valid: Range) -> Problem | None:
    if valid.has(value):
        return None
    return _invalid(param, f"'{param}' must be from {valid.least} to {valid.most}, not {value}.")


def _too_many(param: str, what: str, number: int, most: int) -> Problem:
    return _invalid(param, f"'{param}' has {number} {what}; at most {most} are allowed.")


def _invalid(param: str, message: str) -> Problem:
    return Problem("invalid_request", message, param)
