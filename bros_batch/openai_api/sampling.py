"""Sampling parameters, lane and SLO of a request, as the engine takes them."""

from __future__ import annotations

from bros_batch.openai_api.completion_request import Request
from bros_batch.openai_api.request_fields import MAX_TOKEN_ID
from bros_batch.openai_api.sampling_defaults import SamplingDefaults
from bros_batch.openai_api.served_request import ServedRequest
from bros_batch.request_error import RequestError
from engine.wire.request_terms import LaneName, Sampling, Slo


def sampling_of(request: Request, defaults: SamplingDefaults, room: int = MAX_TOKEN_ID) -> Sampling:
    """Return the engine's sampling parameters for `request`, whose output has room for `room` tokens.

    A `top_p` of 0 leaves only the likeliest token, which is what a temperature of 0 means to the engine.
    """
    requested = request.requested_max_tokens
    top_p = _or(request.top_p, defaults.top_p)
    return Sampling(
        max_tokens=min(defaults.max_tokens(request.endpoint), room) if requested is None else requested,
        min_tokens=request.min_tokens or 0,
        temperature=_or(request.temperature, defaults.temperature) if top_p else 0.0,
        top_p=top_p or 1.0,
        top_k=max(defaults.top_k if request.top_k is None else request.top_k, 0),
        min_p=_or(request.min_p, defaults.min_p),
        seed=request.seed,
        stop=request.stop,
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
        repetition_penalty=_or(request.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=tuple(request.logit_bias.items()),
        logprobs=request.num_logprobs,
        prompt_logprobs=request.num_prompt_logprobs,
        grammar=request.shape[0] if request.shape else None,
    )


def _or(value: float | None, default: float) -> float:
    return float(default if value is None else value)


def fitted_sampling(
    request: Request, num_prompt_tokens: int, *, max_model_len: int, defaults: SamplingDefaults
) -> Sampling:
    """Return `sampling_of(request)` with the default output length limited to the room that the prompt leaves.

    The engine reserves nothing for the output, so a long limit costs nothing. Raises RequestError
    `context_length_exceeded` if the prompt alone, or the prompt and the requested output length together, exceed the
    context length of the model.
    """
    room = max_model_len - num_prompt_tokens
    if num_prompt_tokens == 0:
        raise RequestError("The prompt has no tokens.", request.prompt_param)
    requested = request.requested_max_tokens
    # Clients recognize this error by how its message begins (litellm), or by its code, for which they may look in the
    # message too (langchain).
    limit = f"This model's maximum context length is {max_model_len} tokens"
    if room < (requested != 0):
        raise RequestError(
            f"{limit}, but the prompt has {num_prompt_tokens} tokens. Leave room for at least one output "
            "token (context_length_exceeded).",
            request.prompt_param,
            "context_length_exceeded",
        )
    if requested is not None and requested > room:
        raise RequestError(
            f"{limit}, but the request needs {num_prompt_tokens + requested}: {num_prompt_tokens} for the prompt and "
            f"{requested} for the output (context_length_exceeded).",
            request.prompt_param,
            "context_length_exceeded",
        )
    sampling = sampling_of(request, defaults, room)
    if sampling.min_tokens > sampling.max_tokens:
        raise RequestError("'min_tokens' is greater than the maximum number of tokens.", "min_tokens")
    return sampling


def lane_of(request: ServedRequest) -> LaneName:
    """Return "be" for a request that says it can wait, "rt" for all others."""
    return "be" if request.service_tier == "flex" or (request.priority or 0) > 0 else "rt"


def slo_of(request: ServedRequest) -> Slo | None:
    """Return the request's own SLO; None if it has none and the engine's default applies."""
    slo = request.slo
    if slo is None:
        return None
    if slo.ttft_ms is None or slo.tpot_ms is None:
        return Slo(slowdown=slo.slowdown)
    return Slo(ttft_s=slo.ttft_ms / 1000, tpot_s=slo.tpot_ms / 1000)
