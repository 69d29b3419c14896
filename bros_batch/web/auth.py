"""Authentication: an API key as a bearer token, or the session cookie of a browser that has logged in.

Without an API key in the settings, everyone who can connect has access; `preflight.check_exposure` makes sure that only
this machine can.
"""

from __future__ import annotations

import time
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from bros_batch.addresses import is_loopback
from bros_batch.settings import Settings
from bros_batch.web.api_key import KeyCache
from bros_batch.web.app_state import app_state
from bros_batch.web.errors import ApiError
from bros_batch.web.session_cookie import has_session

OPEN_PATHS = frozenset({"/health", "/login"})
API_PREFIX = "/v1/"
# Paths outside the API that are not pages either.
PLAIN_PATHS = frozenset({"/ready", "/version", "/metrics"})


class Authentication:
    """Middleware that rejects requests without access: with an API error, or a redirect of a browser to the login."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._keys = KeyCache()

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
        else:
            await rejection(scope, receive, send)

    async def _rejection(self, connection: HTTPConnection) -> Response | None:
        """Return the response to a request without access; None for a request that has access."""
        scope, headers = connection.scope, connection.headers
        if _is_cross_site(scope, headers):
            message = "Requests from other web sites are rejected."
            return ApiError(403, message, code="cross_site_request").response()
        state = app_state(connection)
        if not _is_own_host(state.settings, headers):
            message = (
                "Requests for this host name are rejected. To serve under it, set BROS_API_KEY on the server."
            )
            return ApiError(403, message, code="host_not_allowed").response()
        server_key = state.settings.api_key
        if not server_key or scope["path"] in OPEN_PATHS:
            return None
        key = _bearer_token(headers)
        if key is not None and await self._keys.is_valid(state, key):
            return None
        is_api = scope["path"].startswith(API_PREFIX)
        is_read = scope["method"] in ("GET", "HEAD")
        # A session gives access to pages and downloads. Changes through the API need the key itself.
        if key is None and (is_read or not is_api) and has_session(server_key, headers, time.time()):
            return None
        is_page = is_read and not is_api and scope["path"] not in PLAIN_PATHS
        if key is None and is_page and "text/html" in headers.get("accept", ""):
            return RedirectResponse(f"/login?next={quote(scope['path'])}", 303)
        if key is None:
            message = "An API key is required. Send it as 'Authorization: Bearer KEY'."
        else:
            message = "This API key is not valid."
        challenge = {"WWW-Authenticate": "Bearer"}
        return ApiError(401, message, code="invalid_api_key", headers=challenge).response()


def _bearer_token(headers: Headers) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _is_cross_site(scope: Scope, headers: Headers) -> bool:
    """Return whether a page of another site sent the request.

    In a browser on this machine, such a page can reach a server on localhost, but it must neither start work there nor
    hold event streams open. The dashboard's own requests need no key, so for them the whole origin must match,
    including the port.
    """
    is_read = scope["method"] in ("GET", "HEAD", "OPTIONS")
    if is_read and "text/event-stream" not in headers.get("accept", ""):
        return False
    if headers.get("sec-fetch-site") == "cross-site":
        return True
    origin = headers.get("origin")
    is_dashboard = not scope["path"].startswith(API_PREFIX) and scope["path"] not in OPEN_PATHS
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
