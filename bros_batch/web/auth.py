"""Authentication: an API key as a bearer token, or the session cookie of a browser that has logged in.

Without any API key, everyone who can connect has access; `preflight.check_exposure` makes sure that only this machine
can.
"""

from __future__ import annotations

import time
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from bros_batch.addresses import is_loopback
from bros_batch.settings import Settings
from bros_batch.web.api_key import Key
from bros_batch.web.app_state import AppState, app_state
from bros_batch.web.cross_origin import API_PATHS, is_allowed_origin
from bros_batch.web.errors import ApiError

OPEN_PATHS = frozenset({"/health", "/ready", "/login", "/logout"})
# Paths to which pages of other sites may send forms.
FOREIGN_FORM_PATHS = frozenset({"/health", "/login"})
# Paths outside the API that are not pages either. They report even that the database is unavailable.
PLAIN_PATHS = frozenset({"/ready", "/version", "/metrics"})


class Authentication:
    """Middleware that rejects requests without access: with an API error, or a redirect of a browser to the login.

    It reads only a request's head, so a body without access is neither read nor stored.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":  # there are none
            await send({"type": "websocket.close", "code": 1008})
            return
        rejection = await self._rejection(HTTPConnection(scope))
        if rejection is None:
            await self._app(scope, receive, send)
            return
        if isinstance(rejection, ApiError):
            scope["state"]["error_code"] = rejection.code
            rejection = rejection.response()
        await rejection(scope, receive, send)

    async def _rejection(self, connection: HTTPConnection) -> ApiError | Response | None:
        """Return the response to a request without access; None for a request that has access."""
        scope, headers = connection.scope, connection.headers
        state = app_state(connection)
        if _is_cross_site(scope, headers, state.settings):
            message = "Requests from other web sites are rejected."
            return ApiError(403, message, code="cross_site_request")
        try:
            if not _is_own_host(state.settings, headers) and not await state.keys.is_needed():
                message = (
                    "Requests for this host name are rejected. To serve under it, set BROS_API_KEY on the "
                    "server."
                )
                return ApiError(403, message, code="host_not_allowed")
            if scope["path"] in OPEN_PATHS or not await state.keys.is_needed():
                return None
            scope["state"]["key"] = key = await _key_of(state, connection)
        except ApiError as error:  # the database is unavailable
            return None if scope["path"] in PLAIN_PATHS and not state.settings.api_key else error
        return None if key is not None else _unauthorized(connection)


async def still_has_access(request: Request) -> bool:
    """Return whether a request that was accepted earlier would be accepted now: a long stream ends with its key."""
    state = app_state(request)
    try:
        return not await state.keys.is_needed() or await _key_of(state, request) is not None
    except ApiError:
        return True  # unknown, since the database is unavailable


async def may_read_reasons(request: Request) -> bool:
    """Return whether a request to an open path has access, and may so be told what is wrong."""
    state = app_state(request)
    try:
        return not await state.keys.is_needed() or await _key_of(state, request) is not None
    except ApiError:  # unknown, since the database is unavailable; see PLAIN_PATHS
        return not state.settings.api_key


async def _key_of(state: AppState, connection: HTTPConnection) -> Key | None:
    """Return the valid key with which a request was sent, or that of its session.

    A session gives access to pages and downloads. Changes through the API need the key itself.
    """
    secret = _bearer_token(connection.headers)
    if secret is not None:
        return await state.keys.find(secret)
    is_api = connection.scope["path"].startswith(API_PATHS)
    if is_api and connection.scope["method"] not in ("GET", "HEAD"):
        return None
    return await state.sessions.key_of(connection.headers, time.time())


def _unauthorized(connection: HTTPConnection) -> ApiError | Response:
    scope, headers = connection.scope, connection.headers
    has_key = _bearer_token(headers) is not None
    is_page = (
        scope["method"] in ("GET", "HEAD")
        and not scope["path"].startswith(API_PATHS)
        and scope["path"] not in PLAIN_PATHS
    )
    if not has_key and is_page and "text/html" in headers.get("accept", ""):
        return RedirectResponse(f"/login?next={quote(scope['path'])}", 303)
    if has_key:
        message = "This API key is not valid."
    elif not scope["path"].startswith(API_PATHS) and scope["path"] not in PLAIN_PATHS:  # the dashboard's
        message = "Your session has ended. Log in again: reload the page."
    else:
        message = "An API key is required. Send it as 'Authorization: Bearer KEY'."
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _bearer_token(headers: Headers) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _is_cross_site(scope: Scope, headers: Headers, settings: Settings) -> bool:
    """Return whether a page of another site sent the request, and its origin is not among the allowed ones.

    In a browser on this machine, such a page can reach a server on localhost, but it must neither start work there nor
    hold event streams open. The dashboard's own requests need no key, so for them the whole origin must match,
    including the port.
    """
    is_read = scope["method"] in ("GET", "HEAD", "OPTIONS")
    if is_read and "text/event-stream" not in headers.get("accept", ""):
        return False
    if scope["path"].startswith(API_PATHS) and is_allowed_origin(settings, headers.get("origin")):
        return False
    if headers.get("sec-fetch-site") == "cross-site":
        return True
    origin = headers.get("origin")
    is_dashboard = not scope["path"].startswith(API_PATHS) and scope["path"] not in FOREIGN_FORM_PATHS
    return is_dashboard and origin is not None and _netloc(origin) != headers.get("host")


def _is_own_host(settings: Settings, headers: Headers) -> bool:
    """Return whether the Host header names this server. Without an API key, only names of this machine do.

    This prevents DNS rebinding: a site may point its own host name at this machine's address, and the browser then
    treats requests to this server as requests to that site.
    """
    if settings.api_key or settings.insecure:
        return True
    try:
        name = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:
        return False
    return is_loopback(name) or name == settings.host.lower()


def _netloc(url: str) -> str | None:
    """The host and port of a URL; None if it is not a URL."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return None
