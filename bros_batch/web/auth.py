"""Who may ask: an API key as a bearer token, or, in a browser, a cookie that the login page gave for it.

With no key set, everything is open to whoever can connect; `preflight.check_exposure` keeps that to this machine.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, quote, urlsplit

from sqlalchemy import Connection
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from bros_batch.addresses import is_loopback
from bros_batch.db.api_keys import find_api_key
from bros_batch.settings import Settings
from bros_batch.web.app_state import WebServices, services_of
from bros_batch.web.errors import ApiError
from bros_batch.web.login_page import login_page
from bros_batch.web.request_body import read_body

COOKIE = "bros_session"
SESSION_S = 12 * 3600
MAX_LOGIN_BYTES = 8192
KEY_CACHE_S = 10.0
OPEN_PATHS = frozenset({"/health", "/login"})
API_PREFIX = "/v1/"
PLAIN_PATHS = frozenset({"/ready", "/version", "/metrics"})


class Authentication:
    """Lets a request through, or answers 401 (an API's) or with the login page (a browser's)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._known: dict[bytes, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        refusal = await self._refusal(connection)
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, send)

    async def _refusal(self, connection: HTTPConnection) -> Response | None:
        scope = connection.scope
        reads = scope.get("method", "GET") in ("GET", "HEAD")
        if _from_another_site(scope, connection.headers):
            message = "Requests from other web sites are refused."
            return ApiError(403, message, code="cross_site_request").response()
        services = services_of(connection)
        if not _is_our_name(services.settings, connection.headers):
            message = "Requests for another host name are refused: set BROS_API_KEY to serve under this one."
            return ApiError(403, message, code="host_not_allowed").response()
        key = services.settings.api_key
        if not key or scope["path"] in OPEN_PATHS:
            return None
        sent = _bearer(connection.headers)
        if sent is not None and await self._is_valid(services, key, sent):
            return None
        is_api = scope["path"].startswith(API_PREFIX)
        # A browser's cookie opens pages and downloads; what changes things through the API needs the key itself.
        if sent is None and (reads or not is_api) and _is_session(key, connection.headers, time.time()):
            return None
        is_page = reads and not is_api and scope["path"] not in PLAIN_PATHS
        if sent is None and is_page and "text/html" in connection.headers.get("accept", ""):
            return RedirectResponse(f"/login?next={quote(scope['path'])}", 303)
        if sent is None:
            message = "An API key is needed: send it as 'Authorization: Bearer KEY'."
        else:
            message = "This API key is not valid."
        headers = {"WWW-Authenticate": "Bearer"}
        return ApiError(401, message, code="invalid_api_key", headers=headers).response()

    async def _is_valid(self, services: WebServices, key: str, sent: str) -> bool:
        """Whether `sent` is the server's key, or one of the database's, remembered for a few seconds."""
        if hmac.compare_digest(sent.encode(), key.encode()):
            return True
        digest, now_s = hashlib.sha256(sent.encode()).digest(), time.monotonic()
        if self._known.get(digest, 0.0) > now_s:
            return True

        def find(connection: Connection) -> bool:
            return find_api_key(connection, sent) is not None

        if not await services.read(find):
            return False
        self._known = {each: until for each, until in self._known.items() if until > now_s}
        self._known[digest] = now_s + KEY_CACHE_S
        return True


async def login(request: Request) -> Response:
    """The page that asks for the key, and where it is sent."""
    services = services_of(request)
    key = services.settings.api_key
    target = _local_path(request.query_params.get("next", "/"))
    if not key:
        return RedirectResponse(target, 303)
    if request.method == "GET":
        return HTMLResponse(login_page(target, failed=False))
    fields = parse_qs((await read_body(request, MAX_LOGIN_BYTES)).decode(errors="replace"))
    sent = fields.get("key", [""])[0].strip()

    def find(connection: Connection) -> bool:
        return find_api_key(connection, sent) is not None

    if not hmac.compare_digest(sent.encode(), key.encode()) and not await services.read(find):
        return HTMLResponse(login_page(target, failed=True), 401)
    response = RedirectResponse(target, 303)
    response.set_cookie(
        COOKIE,
        _session(key, int(time.time()) + SESSION_S),
        max_age=SESSION_S,
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )
    return response


def _session(key: str, until: int) -> str:
    """`until.signature`: the key signs, so a changed key ends every session."""
    signature = hmac.new(key.encode(), f"session until {until}".encode(), hashlib.sha256).hexdigest()
    return f"{until}.{signature}"


def _is_session(key: str, headers: Headers, now_s: float) -> bool:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return False
    until = "" if morsel is None else morsel.value.partition(".")[0]
    if morsel is None or not until.isdecimal() or len(until) > 12:
        return False
    return (
        hmac.compare_digest(morsel.value.encode(), _session(key, int(until)).encode()) and int(until) > now_s
    )


def _bearer(headers: Headers) -> str | None:
    scheme, _, sent = headers.get("authorization", "").partition(" ")
    return sent.strip() if scheme.lower() == "bearer" else None


def _from_another_site(scope: Scope, headers: Headers) -> bool:
    """A page of another site in a visitor's browser may reach a server on localhost; it must not make it work."""
    if scope["type"] == "websocket":
        origin = headers.get("origin")
        return origin is not None and urlsplit(origin).netloc != headers.get("host")
    return scope["method"] not in ("GET", "HEAD", "OPTIONS") and headers.get("sec-fetch-site") == "cross-site"


def _is_our_name(settings: Settings, headers: Headers) -> bool:
    """Without a key, only this machine's own names: a page may give its own name this machine's address, and what it
    then asks for is no other site's to the browser."""
    if settings.api_key or settings.insecure:
        return True
    name = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    return is_loopback(name) or name == settings.host.lower()


def _local_path(target: str) -> str:
    """`target` if it is a path on this server, so that the login page sends nobody elsewhere."""
    return target if target.startswith("/") and not target.startswith(("//", "/\\")) else "/"


routes = [Route("/login", login, methods=["GET", "POST"])]
