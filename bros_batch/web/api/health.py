"""Health checks and the version: `/health`, `/ready`, `/version`."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

import redis.asyncio
from fastapi import APIRouter, Request
from redis.exceptions import RedisError
from starlette.responses import Response

from bros_batch.db.connections import probe
from bros_batch.first_line import first_line
from bros_batch.web.app_state import AppState, app_state
from bros_batch.web.auth import may_read_reasons
from bros_batch.web.errors import JSONResponse
from engine.wire.engine_errors import EngineGone

CHECK_TIMEOUT_S = 3.0
NOT_READY = "not ready"

router = APIRouter()


@router.get("/health")
async def health() -> Response:
    """Report that the process responds. Needs no API key."""
    return JSONResponse({"status": "ok"})


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Respond 200 if database, Redis and engine are available, else 503 and which are not.

    Needs no API key, so that load balancers and `up` can ask. Only those with access are told the reasons.
    """
    state = app_state(request)
    problems = await state.problems.of(lambda: _problems(state))
    is_ready = not any(problems.values())
    says_why = is_ready or await may_read_reasons(request)
    status = {
        name: (problem if says_why else NOT_READY) if problem else "ok" for name, problem in problems.items()
    }
    body = {"status": "ready" if is_ready else NOT_READY, **status}
    return JSONResponse(body, 200 if is_ready else 503, None if is_ready else {"Retry-After": "1"})


@router.get("/version")
async def get_version() -> Response:
    """Return the version of this server."""
    return JSONResponse({"version": version("bros-batch")})


async def _problems(state: AppState) -> dict[str, str | None]:
    """Ask each service; the values say why one is not available."""
    names = ("database", "redis", "engine")
    problems = await asyncio.gather(_check_database(state), _check_redis(state), _check_engine(state))
    return dict(zip(names, problems, strict=True))


async def _check_database(state: AppState) -> str | None:
    try:
        await state.read(probe, CHECK_TIMEOUT_S)
    except Exception as error:
        return first_line(error)
    return None


async def _check_redis(state: AppState) -> str | None:
    client = redis.asyncio.Redis.from_url(
        state.settings.resolved_redis_url,
        socket_timeout=CHECK_TIMEOUT_S,
        socket_connect_timeout=CHECK_TIMEOUT_S,
    )
    try:
        await client.ping()
    except (RedisError, OSError) as error:
        return first_line(error)
    finally:
        await client.aclose()
    return None


async def _check_engine(state: AppState) -> str | None:
    try:
        await state.engine.client()
    except EngineGone as error:
        return first_line(error)
    return None
