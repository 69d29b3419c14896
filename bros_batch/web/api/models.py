"""`/v1/models`: the model that is served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from bros_batch.web.app_state import AppState, app_state
from bros_batch.web.errors import JSONResponse, model_not_found

router = APIRouter(prefix="/v1/models")


@router.get("")
async def list_models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [model_object(app_state(request))]})


@router.get("/{model:path}")
async def get_model(request: Request, model: str) -> Response:
    state = app_state(request)
    if model != state.settings.model_name:
        raise model_not_found(model, state.settings.model_name)
    return JSONResponse(model_object(state))


def model_object(state: AppState) -> dict[str, Any]:
    """Return OpenAI's `model` object, and vLLM's `max_model_len`; null while the engine is not connected."""
    client = state.engine.connected
    return {
        "id": state.settings.model_name,
        "object": "model",
        "created": state.started_at,
        "owned_by": "bros-batch",
        "max_model_len": None if client is None else client.welcome.max_model_len,
    }
