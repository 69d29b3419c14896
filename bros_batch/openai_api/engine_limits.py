"""The engine's verdict on a request, known before the request is sent."""

from __future__ import annotations

from collections.abc import Callable

from bros_batch.openai_api.engine_requests import EngineRequests
from bros_batch.request_error import RequestError
from engine.wire.limits import EngineLimits
from engine.wire.request_problems import problem_with, problem_with_item, slo_problem
from engine.wire.request_terms import Slo


def check_limits(
    requests: EngineRequests,
    limits: EngineLimits,
    slo: Slo | None,
    prompt_param: str,
    param_of_part: Callable[[int], str],
) -> None:
    """Check what a request became for the engine. Raises RequestError, which names the field at fault.

    `prompt_param` is the field of the request that holds its prompts, and `param_of_part` names one of them.
    """
    param = prompt_param
    if len(requests.parts) * requests.num_choices == 1:
        part = requests.parts[0]
        problem = problem_with(requests.prompt_of(part), part.sampling, limits, slo)
    else:
        problem = problem_with_item(requests.as_item(), limits) or slo_problem(slo)
        if problem is not None and problem.of_part is not None:
            number, problem = problem.of_part
            param = param_of_part(number)
    if problem is None:
        return
    if problem.param == "parts":
        raise RequestError(
            problem.message.replace("'parts'", f"'{prompt_param}'"), prompt_param, problem.code
        )
    if problem.param != "token_ids":
        raise RequestError(problem.message, problem.param, problem.code)
    message = problem.message if param == prompt_param else f"'{param}': {problem.message}"
    raise RequestError(message, param, problem.code)
