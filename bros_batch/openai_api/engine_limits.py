"""The engine's verdict on a request, known before the request is sent."""

from __future__ import annotations

from bros_batch.openai_api.served_request import ServedRequest
from bros_batch.request_error import RequestError
from engine.wire.limits import EngineLimits, problem_with
from engine.wire.protocol import Sampling, Slo


def check_limits(
    request: ServedRequest,
    token_ids: list[int],
    sampling: Sampling,
    limits: EngineLimits,
    slo: Slo | None = None,
) -> None:
    """Check what `request` became for the engine. Raises RequestError, which names the field at fault."""
    problem = problem_with(token_ids, sampling, limits, slo)
    if problem is not None:
        param = request.prompt_param if problem.param == "token_ids" else problem.param
        raise RequestError(problem.message, param, problem.code)
