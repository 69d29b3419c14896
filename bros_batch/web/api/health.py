"""Is it alive, is it ready, what is it: `/health`, `/ready`, `/version`; and the models, `/v1/models`."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Any

import redis.asyncio
from fastapi import APIRouter, Request
from redis.exceptions import RedisError
from starlette.responses import Response

from bros_batch.db.connections import probe
from bros_batch.web.app_state import WebServices, services_of
from bros_batch.web.errors import ApiError, JSONResponse
from engine.wire.client import EngineGone

CHECK_TIMEOUT_S = 3.0

router = APIRouter()


@router.get("/health")
async def health() -> Response:
    """The process answers. No key needed."""
    return JSONResponse({"status": "ok"})


@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 when work can be done, 503 with what is missing when not."""
    services = services_of(request)
    names = ("database", "redis", "engine")
    checks = (_check_database(services), _check_redis(services), _check_engine(services))
    problems = await asyncio.gather(*checks)
    status = {name: problem or "ok" for name, problem in zip(names, problems, strict=True)}
    is_ready = not any(problems)
    body = {"status": "ready" if is_ready else "not ready", **status}
    return JSONResponse(body, 200 if is_ready else 503, None if is_ready else {"Retry-After": "1"})


@router.get("/version")
async def version_of_this() -> Response:
    return JSONResponse({"version": version("bros-batch")})


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_model(services_of(request))]})


@router.get("/v1/models/{model:path}")
async def get_model(request: Request, model: str) -> Response:
    services = services_of(request)
    if model != services.settings.model_name:
        message = f"The model '{model}' is not served here; there is '{services.settings.model_name}'."
        raise ApiError(404, message, param="model", code="model_not_found")
    return JSONResponse(_model(services))


def _model(services: WebServices) -> dict[str, Any]:
    client = services.engine.connected
    return {
        "id": services.settings.model_name,
        "object": "model",
        "created": services.started_at,
        "owned_by": "bros-batch",
        "max_model_len": None if client is None else client.welcome.max_model_len,
    }


async def _check_database(services: WebServices) -> str | None:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            await services.read(probe)
    except TimeoutError:
        return f"no answer within {CHECK_TIMEOUT_S:g} s"
    except Exception as error:
        return str(error).splitlines()[0]
    return None


async def _check_redis(services: WebServices) -> str | None:
    client = redis.asyncio.Redis.from_url(
        services.settings.resolved_redis_url,
        socket_timeout=CHECK_TIMEOUT_S,
        socket_connect_timeout=CHECK_TIMEOUT_S,
    )
    try:
        await client.ping()
    except (RedisError, OSError) as error:
        return str(error)
    finally:
        await client.aclose()
    return None


async def _check_engine(services: WebServices) -> str | None:
    try:
        await services.engine.client()
    except EngineGone as error:
        return str(error)
    return None
