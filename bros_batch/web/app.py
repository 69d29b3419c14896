"""The web process: the API of OpenAI's clients, the dashboard, and what an operator asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from bros_batch.db.connections import make_engine
from bros_batch.openai_api.completion_requests import RequestError
from bros_batch.settings import Settings
from bros_batch.web import auth
from bros_batch.web.api import batches as batches_api
from bros_batch.web.api import completions as completions_api
from bros_batch.web.api import files as files_api
from bros_batch.web.api import health as health_api
from bros_batch.web.api import metrics
from bros_batch.web.api.uploads import remove_abandoned
from bros_batch.web.app_state import WebServices
from bros_batch.web.engine_link import EngineLink
from bros_batch.web.errors import (
    ApiError,
    answer_api_error,
    answer_http_exception,
    answer_request_error,
)
from bros_batch.web.middleware import RequestIds


def create_app(settings: Settings, *, dashboard: bool = True) -> FastAPI:
    """The application. It keeps one connection to the engine and a pool to the database while it runs.

    One dashboard a process: NiceGUI's own state is the process's.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        remove_abandoned(settings.files_dir)
        database = make_engine(settings.resolved_database_url)
        try:
            async with EngineLink(settings.resolved_engine_url, settings.engine_token) as engine:
                services = WebServices(settings, database, engine, int(time.time()))
                app.state.services = services
                # The first request must not wait for a large tokeniser; if it fails now, that request says why.
                warming = asyncio.create_task(services.text())
                yield
                await asyncio.gather(warming, return_exceptions=True)
        finally:
            database.dispose()

    # No docs pages: they would fetch their scripts from a CDN.
    app = FastAPI(
        title="bros-batch",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.add_exception_handler(ApiError, answer_api_error)
    app.add_exception_handler(RequestError, answer_request_error)
    app.add_exception_handler(HTTPException, answer_http_exception)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    plain_routes = [*completions_api.routes, *metrics.routes, *auth.routes]
    app.router.routes += plain_routes
    routers = (health_api.router, files_api.router, batches_api.router)
    for router in routers:
        app.include_router(router)
    app.state.api_routes = [*plain_routes, *(route for router in routers for route in router.routes)]
    # The last one added is the outermost.
    app.add_middleware(auth.Authentication)
    app.add_middleware(RequestIds)
    if dashboard:
        from bros_batch.web.dashboard.site import mount_dashboard

        # Not a mount: that would match before a route of the API could say that only its method is wrong.
        app.router.default = _outside_of_api(mount_dashboard(app), app.router.default)
    return app


def _outside_of_api(site: ASGIApp, not_found: ASGIApp) -> ASGIApp:
    async def fallback(scope: Scope, receive: Receive, send: Send) -> None:
        is_api = scope["type"] == "http" and scope["path"].startswith(("/v1/", "/login"))
        await (not_found if is_api else site)(scope, receive, send)

    return fallback


async def _answer_validation_error(_request: Request, error: Exception) -> Response:
    """A parameter of a URL that is out of range or no such word."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = str(first["loc"][-1])
    message = f"Invalid '{param}': {first['msg'][:1].lower()}{first['msg'][1:]}."
    return ApiError(400, message, param=param, code="invalid_request").response()
