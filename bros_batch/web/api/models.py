"""`/v1/models`: the model that is served, under its name and its aliases."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from bros_batch.openai_api.sampling_defaults import sampling_defaults
from bros_batch.web.app_state import AppState, app_state
from bros_batch.web.errors import JSONResponse

router = APIRouter(prefix="/v1/models")


@router.get("")
async def list_models(request: Request) -> Response:
    """List the served model, under its name and its aliases."""
    state = app_state(request)
    names = state.settings.model_names
    models = [await model_object(state, name) for name in (names.served, *names.aliases)]
    return JSONResponse({"object": "list", "data": models})


@router.get("/{model:path}")
async def get_model(request: Request, model: str) -> Response:
    """Return the served model, under its name or an alias, which may contain slashes."""
    state = app_state(request)
    state.settings.model_names.resolve(model)
    return JSONResponse(await model_object(state, model))


async def model_object(state: AppState, name: str) -> dict[str, Any]:
    """Return OpenAI's `model` object, with vLLM's `root`, the model that serves `name`, and `max_model_len`, which is
    null while the engine is not connected; and our `sampling_defaults`, for requests that do not set their own."""
    client = state.engine.connected
    tokenizer = await state.tokenizer()
    return {
        "id": name,
        "object": "model",
        "created": state.started_at,
        "owned_by": "bros-batch",
        "root": state.settings.model_name,
        "max_model_len": None if client is None else client.welcome.max_model_len,
        "sampling_defaults": sampling_defaults(state.settings, tokenizer.recommended_sampling).as_json(),
    }
