"""Sampling parameters, lane and SLO of a request, as the engine takes them."""

from __future__ import annotations

from bros_batch.openai_api.completion_request import Request
from bros_batch.request_error import RequestError
from engine.wire.protocol import LaneName, Sampling, Slo


def sampling_of(request: Request, default_max_tokens: int) -> Sampling:
    """Return the engine's sampling parameters for `request`."""
    return Sampling(
        max_tokens=request.requested_max_tokens or default_max_tokens,
        min_tokens=request.min_tokens or 0,
        temperature=_or(request.temperature, 1.0),
        top_p=_or(request.top_p, 1.0),
        top_k=max(request.top_k or 0, 0),
        min_p=request.min_p or 0.0,
        seed=request.seed,
        stop=request.stop,
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
        repetition_penalty=_or(request.repetition_penalty, 1.0),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=tuple(request.logit_bias.items()),
        logprobs=request.num_logprobs,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def fitted_sampling(
    request: Request, num_prompt_tokens: int, *, max_model_len: int, default_max_tokens: int
) -> Sampling:
    """Return `sampling_of(request)` with the default output length limited to the room that the prompt leaves.

    Raises RequestError `context_length_exceeded` if the prompt alone, or the prompt and the requested output length
    together, exceed the context length of the model.
    """
    room = max_model_len - num_prompt_tokens
    if num_prompt_tokens == 0:
        raise RequestError("The prompt has no tokens.", request.prompt_param)
    requested = request.requested_max_tokens
    if room < 1:
        raise RequestError(
            f"This model's context length is {max_model_len} tokens, but the prompt has {num_prompt_tokens} "
            "tokens. Leave room for at least one output token.",
            request.prompt_param,
            "context_length_exceeded",
        )
    if requested is not None and requested > room:
        raise RequestError(
            f"This model's context length is {max_model_len} tokens, but the request needs "
            f"{num_prompt_tokens + requested}: {num_prompt_tokens} for the prompt and {requested} for the output.",
            request.prompt_param,
            "context_length_exceeded",
        )
    sampling = sampling_of(request, min(default_max_tokens, room))
    if sampling.min_tokens > sampling.max_tokens:
        raise RequestError("'min_tokens' is greater than the maximum number of tokens.", "min_tokens")
    return sampling


def lane_of(request: Request) -> LaneName:
    """Return "be" for a request that says it can wait, "rt" for all others."""
    return "be" if request.service_tier == "flex" or (request.priority or 0) > 0 else "rt"


def slo_of(request: Request) -> Slo | None:
    """Return the request's own SLO; None if it has none and the engine's default applies."""
    slo = request.slo
    return None if slo is None else Slo(ttft_s=slo.ttft_ms / 1000, tpot_s=slo.tpot_ms / 1000)
