"""The web application: OpenAI's API, the dashboard, and the endpoints for operators."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from bros_batch.db.connections import open_database
from bros_batch.settings import Settings
from bros_batch.web import auth, login
from bros_batch.web.api import (
    batches,
    completions,
    files,
    health,
    job_check,
    job_events,
    job_files,
    job_forecast,
    metrics,
    models,
    responses,
    rows,
    tokenize,
)
from bros_batch.web.api.uploads import remove_abandoned
from bros_batch.web.app_state import AppState
from bros_batch.web.cross_origin import CrossOrigin
from bros_batch.web.dashboard.history import EngineHistory
from bros_batch.web.dashboard.sampler import Sampler
from bros_batch.web.dashboard.site import dashboard_routes, dashboard_site
from bros_batch.web.engine_link import EngineLink
from bros_batch.web.errors import EXCEPTION_HANDLERS
from bros_batch.web.middleware import RequestIds
from bros_batch.web.webhooks.delivery import Delivery

QUERIES_END_WITHIN_S = 2.0  # when the server stops; one that hangs must not keep it from that


def create_app(settings: Settings) -> FastAPI:
    """Create the application. While it runs, it keeps a connection to the engine and a pool to the database."""
    history = EngineHistory()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        remove_abandoned(settings.files_dir)
        database = open_database(settings.resolved_database_url)
        try:
            async with EngineLink(settings.resolved_engine_url, settings.engine_token) as engine:
                state = AppState(settings, database, engine, int(time.time()))
                app.state.app_state = state
                # Load the tokenizer ahead of the first request. If that fails, the request reports the error.
                loading = asyncio.create_task(state.tokenizer())
                sampling = asyncio.create_task(Sampler(state, history).run())
                calling = asyncio.create_task(Delivery(settings, state).run())
                yield
                sampling.cancel()
                calling.cancel()
                await asyncio.gather(loading, sampling, calling, return_exceptions=True)
                await asyncio.to_thread(state.dispatcher.close)
                await state.threads.close(QUERIES_END_WITHIN_S)
                await state.rate_limits.close()
                await state.item_outputs.close()
        finally:
            database.dispose()

    # No documentation pages: they would load scripts from a CDN.
    app = FastAPI(
        title="bros-batch",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    for error_type, handler in EXCEPTION_HANDLERS.items():
        app.add_exception_handler(error_type, handler)
    plain_routes = [*completions.routes, *responses.routes, *tokenize.routes, *metrics.routes, *login.routes]
    app.router.routes += plain_routes
    modules = (
        health,
        models,
        files,
        batches,
        job_events,
        job_check,
        job_forecast,
        rows,
        job_files,
        responses,
    )
    routers = [module.router for module in modules]
    for router in routers:
        _answer_head(router)
        app.include_router(router)
    pages = dashboard_routes(history)
    app.state.routes = [*plain_routes, *(route for router in routers for route in router.routes), *pages]
    # Streams without an end ask this, so that a stopping server need not wait for them. `serve` replaces it.
    app.state.is_stopping = lambda: False
    # The middleware added last is the outermost.
    app.add_middleware(auth.Authentication)
    if settings.allowed_origins:
        app.add_middleware(CrossOrigin, origins=settings.allowed_origins)
    app.add_middleware(RequestIds)
    # Not a mount: a mount would match a path of the API before its 405 for a wrong method.
    app.router.default = _outside_api(dashboard_site(pages), app.router.default)
    return app


def _answer_head(router: APIRouter) -> None:
    """Let every route for GET also answer HEAD, as Starlette's own routes do; FastAPI's do not."""
    for route in router.routes:
        if isinstance(route, APIRoute) and route.methods is not None and "GET" in route.methods:
            route.methods.add("HEAD")


def _outside_api(site: ASGIApp, not_found: ASGIApp) -> ASGIApp:
    """Return an app that serves unknown paths: those of the API with `not_found`, all others with `site`."""

    async def fallback(scope: Scope, receive: Receive, send: Send) -> None:
        is_page = scope["type"] == "http" and not scope["path"].startswith(("/v1/", "/login", "/logout"))
        await (site if is_page else not_found)(scope, receive, send)

    return fallback
