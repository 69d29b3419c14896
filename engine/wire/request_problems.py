"""The judge of requests: whether an engine can compute a request as it stands, and what is wrong with it otherwise.

The engine judges every request before it starts it, whether it came over the socket or from Redis. The web process and
the workers call the same functions with the limits that they know, so that a client learns of a mistake before anything
is sent. Nothing that passes here can make a step fail, and no value of one request can change another's output.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from engine.wire.item_messages import MAX_PARTS, ItemRequest
from engine.wire.limits import (
    CHOICES_RANGE,
    DEADLINE_RANGE_S,
    MAX_ITEM_TOKENS,
    MAX_PROMPT_LOGPROBS,
    PRIORITY_RANGE,
    SLO_RANGE_S,
    SLOWDOWN_RANGE,
    EngineLimits,
)
from engine.wire.problem import Problem, foreign_token, invalid, out_of_range
from engine.wire.protocol import MAX_PARTS_AT_ONCE, Submit, SubmitParts
from engine.wire.request_terms import Part, Sampling, Slo
from engine.wire.sampling_problems import sampling_problem


def problem_with_submit(request: Submit, limits: EngineLimits) -> Problem | None:
    """What is wrong with a request from the socket, or None."""
    return (
        problem_with(request.token_ids, request.sampling, limits, request.slo)
        or out_of_range("priority", request.priority, PRIORITY_RANGE)
        or _deadline_problem(request.deadline_unix_s)
    )


def problem_with_submit_parts(request: SubmitParts, limits: EngineLimits) -> Problem | None:
    """What is wrong with a request of several prompts from the socket, or None."""
    parts = request.parts
    if not 1 <= len(parts) <= MAX_PARTS_AT_ONCE:
        return invalid("parts", f"'parts' has {len(parts)} parts; it must have 1 to {MAX_PARTS_AT_ONCE}.")
    for number, part in enumerate(parts):
        if most := part.sampling.max_tokens:
            text = f"'parts[{number}].max_tokens' is {most}; parts generate no tokens, so it must be 0."
            return invalid(f"parts[{number}].max_tokens", text)
    return (
        _parts_problem(request.token_ids, parts, 1, limits)
        or slo_problem(request.slo)
        or out_of_range("priority", request.priority, PRIORITY_RANGE)
    )


def problem_with_item(item: ItemRequest, limits: EngineLimits) -> Problem | None:
    """What is wrong with an item of a job, or None."""
    return (
        (
            _parts_problem(item.token_ids, item.parts, item.n, limits)
            if item.parts
            else problem_with(item.token_ids, item.sampling, limits)
        )
        or out_of_range("n", item.n, CHOICES_RANGE)
        or _too_many_logprobs(_num_prompt_logprobs(len(item.token_ids), item.sampling) * item.n)
        or out_of_range("priority", item.priority, PRIORITY_RANGE)
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
        return invalid("parts", text)
    num_tokens = sum(num_shared + len(part.token_ids) for part in parts) * num_choices
    if num_tokens > MAX_ITEM_TOKENS:
        text = f"'parts' has prompts of {num_tokens} tokens together; at most {MAX_ITEM_TOKENS} are allowed."
        return invalid("parts", text)
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
        return invalid("token_ids", "The prompt is empty; send at least one token.")
    if num_tokens + (sampling.max_tokens > 0) > most:
        return Problem(
            "context_length_exceeded",
            f"This model's maximum context length is {most} tokens, prompt and output together, but the prompt has "
            f"{num_tokens} tokens. Shorten the prompt (context_length_exceeded).",
            "token_ids",
        )
    return None


def _vocabulary_problem(token_ids: Collection[int], limits: EngineLimits) -> Problem | None:
    foreign = foreign_token(token_ids, limits.vocab_size)
    if foreign is not None:
        return invalid(
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
    return invalid("prompt_logprobs", text)


def slo_problem(slo: Slo | None) -> Problem | None:
    """What is wrong with an SLO, or None."""
    if slo is None:
        return None
    if slo.slowdown is not None:
        if slo.ttft_s is not None or slo.tpot_s is not None:
            return invalid("slo", "'slo' must have either a slowdown or two times, not both.")
        if not SLOWDOWN_RANGE.has(slo.slowdown):
            least, most = SLOWDOWN_RANGE
            return invalid(
                "slo", f"'slo' must have a slowdown from {least:g} to {most:g}, not {slo.slowdown:g}."
            )
        return None
    least, most = SLO_RANGE_S
    for what, value in (("time to first token", slo.ttft_s), ("time per output token", slo.tpot_s)):
        if value is None:
            return invalid("slo", f"'slo' must have a {what}, or a slowdown instead of both times.")
        if not SLO_RANGE_S.has(value):
            text = f"'slo' must have a {what} from {least * 1000:g} ms to {most:g} s, not {value:g} s."
            return invalid("slo", text)
    return None


def _deadline_problem(deadline_unix_s: float | None) -> Problem | None:
    if deadline_unix_s is None:
        return None
    return out_of_range("deadline_unix_s", deadline_unix_s, DEADLINE_RANGE_S)
