"""From a client's request to the outputs that are to be generated. Nothing is sent to the engine yet."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from starlette.requests import HTTPConnection

from bros_batch.openai_api.endpoint import Endpoint, ServedModel, embedding_form
from bros_batch.openai_api.sampling import slo_of
from bros_batch.openai_api.sampling_defaults import sampling_defaults
from bros_batch.openai_api.served_request import ServedRequest
from bros_batch.web.app_state import app_state
from bros_batch.web.errors import engine_error
from bros_batch.web.generation import INLINE_CHARS, Generation, Output, Usage
from bros_batch.web.owners import asker_of
from engine.wire.engine_errors import EngineGone


async def plan_generation(
    http: HTTPConnection, endpoint: Endpoint[Any], request: ServedRequest
) -> Generation:
    """Check and tokenize `request`, and plan its outputs. Nothing is sent to the engine yet.

    Raises ApiError or RequestError for everything that can be rejected without asking the engine.
    """
    state = app_state(http)
    try:
        client = await state.engine.client()
    except EngineGone as error:
        raise engine_error(error) from error
    if request.model != client.welcome.model:
        state.settings.model_names.resolve(request.model)
    tokenizer = await state.tokenizer()
    defaults = sampling_defaults(state.settings, tokenizer.recommended_sampling)
    model = ServedModel(tokenizer, client.welcome, defaults, embedding_form(state.settings, tokenizer))
    plan = partial(endpoint.checked_engine_requests, request, model, slo_of(request))
    if request.num_prompt_chars < INLINE_CHARS:
        work = plan()
    else:
        async with state.long_prompts:
            work = await asyncio.to_thread(plan)
    outputs = [
        Output(number * work.num_choices + choice, part, part.sampling.for_choice(choice), choice == 0)
        for number, part in enumerate(work.parts)
        for choice in range(work.num_choices)
    ]
    usage = Usage(prompt_tokens=work.num_prompt_tokens)
    form = endpoint.message_form(request, tokenizer)
    return Generation(endpoint, request, model, form, client, work, outputs, usage, asker_of(http))
