"""Access of pages of other origins to the API (CORS), for the origins that the operator allows."""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from bros_batch.settings import Settings

EXPOSED_HEADERS = ("x-request-id", "x-bros-ignored", "retry-after", "content-range", "content-disposition")
API_PATHS = ("/v1/", "/tokenize", "/detokenize")
PREFLIGHT_MAX_AGE_S = 600


def is_allowed_origin(settings: Settings, origin: str | None) -> bool:
    """Return whether pages of `origin` may use the API. `*` in the settings allows all, if requests need a key."""
    if origin is None:
        return False
    return origin in settings.allowed_origins or ("*" in settings.allowed_origins and bool(settings.api_key))


class CrossOrigin:
    """Middleware that answers preflight requests for the API, and lets allowed origins read its answers.

    It never allows credentials: a page of another origin needs an API key, and cannot use a browser's session.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        self._app = app
        self._api = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=EXPOSED_HEADERS,
            max_age=PREFLIGHT_MAX_AGE_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_api = scope["type"] == "http" and scope["path"].startswith(API_PATHS)
        await (self._api if is_api else self._app)(scope, receive, send)
