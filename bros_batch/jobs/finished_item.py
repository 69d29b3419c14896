"""From the output of an item to how the item ends: with the text of its response body, or with an error."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import msgspec

from bros_batch.db.item_results import FinishedItem, ItemOrigin
from bros_batch.db.states import ItemStatus
from bros_batch.documents.error_messages import storable
from bros_batch.documents.item_requests import JobRequests
from bros_batch.jobs.cpu_limit import LINE_CPU_LIMIT_S, CpuLimitExceeded, cpu_limit
from bros_batch.openai_api.batch_output import request_id
from bros_batch.openai_api.completion_response import ResponseHead, has_incomplete_json
from bros_batch.openai_api.endpoint import ServedModel, outcome_of
from bros_batch.openai_api.endpoints import RESPONSES
from bros_batch.request_error import RequestError
from engine.wire.item_messages import ItemResult

SHORTER_ANSWERS = "limit the answer in its schema (maxLength, maxItems, maximum), or use another model"


@dataclass(frozen=True, slots=True)
class Reused:
    """How many tokens of an output were taken from earlier answers and not computed."""

    prompt_tokens: int = 0
    output_tokens: int = 0


NOTHING_REUSED = Reused()


def finished_item(
    result: ItemResult,
    origin: ItemOrigin,
    requests: JobRequests | RequestError,
    model: ServedModel,
    reused: Reused = NOTHING_REUSED,
) -> FinishedItem:
    """How an item ends with a result, whose token counts include what was reused."""
    failed = partial(FinishedItem, result.item_id, result.epoch, origin.job_id, ItemStatus.FAILED)
    if result.error_code is not None:
        message = storable(result.error_message or result.error_code)
        return failed(error_code=storable(result.error_code)[:64], error_message=message)
    try:
        with cpu_limit(LINE_CPU_LIMIT_S):
            body, problem = _body(result, origin, requests, model)
    except (
        CpuLimitExceeded,
        RequestError,
        ValueError,
        TypeError,
        LookupError,
        OverflowError,
        msgspec.MsgspecError,
    ) as error:
        message = storable(f"The engine's output can't be read: {error}")
        return failed(error_code="engine_lost", error_message=message)
    if problem is not None:
        return failed(error_code="output_truncated", error_message=problem, result=body)
    return FinishedItem(
        result.item_id,
        result.epoch,
        origin.job_id,
        ItemStatus.SUCCEEDED,
        result=body,
        prompt_tokens=result.prompt_tokens - reused.prompt_tokens,
        cached_tokens=result.cached_tokens - reused.prompt_tokens,
        output_tokens=sum(len(choice.token_ids) for choice in result.choices) - reused.output_tokens,
        reused_prompt_tokens=reused.prompt_tokens,
        reused_output_tokens=reused.output_tokens,
    )


def _body(
    result: ItemResult, origin: ItemOrigin, requests: JobRequests | RequestError, model: ServedModel
) -> tuple[str, str | None]:
    """The JSON text of the response body, and what is wrong with it for a job whose answers follow a schema."""
    if isinstance(requests, RequestError):
        raise requests
    head = ResponseHead(
        origin.endpoint, request_id(result.item_id, result.epoch), origin.model, int(time.time())
    )
    body = requests.response(head, model, origin.body or "", outcome_of(result))
    is_cut = requests.has_schema and has_incomplete_json(body)
    problem = _cut_answer(result, origin.endpoint, model) if is_cut else None
    return msgspec.json.encode(body).decode(), problem


def _cut_answer(result: ItemResult, endpoint: str, model: ServedModel) -> str:
    """What cut an answer before its JSON was complete, and what to do about it."""
    output_tokens = max(len(choice.token_ids) for choice in result.choices)
    context = model.limits.max_model_len
    limit = "max_output_tokens" if endpoint == RESPONSES else "max_tokens"
    if result.prompt_tokens + output_tokens < context:
        reached = f"The answer reached its limit of {output_tokens:,} tokens"
        advice = (
            f"If it was good so far, submit the row again with '{limit}' above {output_tokens}; if the model repeated "
            f"itself, {SHORTER_ANSWERS}."
        )
    elif result.prompt_tokens > context / 2:
        prompt = f"The prompt of {result.prompt_tokens:,} tokens"
        reached = f"{prompt} and its answer filled the model's context of {context:,} tokens"
        advice = "Submit the row again with a shorter text, or use a model with a larger context."
    else:
        reached = f"The answer filled the model's context of {context:,} tokens"
        advice = (
            f"The model may have repeated itself: {SHORTER_ANSWERS}. '{limit}' (`bros-batch submit --max-tokens`) "
            "ends such an answer sooner."
        )
    return f"{reached} before its JSON was complete; what there is of it is kept. {advice}"
