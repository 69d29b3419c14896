"""API errors in OpenAI's format.

The body is `{"error": {"message", "type", "param", "code"}}`, and all four keys are always present.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from bros_batch.invalid_value import expectation
from bros_batch.openai_api.served_request import ServedRequest
from bros_batch.request_error import RequestError
from engine.wire.engine_errors import EngineGone, EngineRejected, EngineSilent

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
RETRY_AFTER_S = 1.0


class ApiError(Exception):
    """An error response with any status, raised by a route; `message` is for the client to read.

    A 400 for an invalid request, and the 404 for its model, are raised as RequestError.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))

    @property
    def body(self) -> dict[str, Any]:
        kind = ERROR_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return JSONResponse(self.body, self.status, self.headers)


class JSONResponse(Response):
    """JSON encoded by msgspec, which is fast and also encodes the results of bulk items."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def not_found(what: str, name: str, param: str = "id") -> ApiError:
    return ApiError(404, f"No such {what}: '{name}'.", param=param, code="not_found")


def engine_error(error: EngineGone | EngineRejected, request: ServedRequest | None = None) -> ApiError:
    """Return the response for an engine that is unreachable or has rejected `request`."""
    if isinstance(error, EngineSilent):
        message = "The engine does not respond. Try again in a moment."
        return ApiError(503, message, code="engine_unavailable", retry_after_s=RETRY_AFTER_S)
    if isinstance(error, EngineGone):
        message = "The engine is not reachable; it may be starting. Try again in a moment."
        return ApiError(503, message, code="engine_unavailable", retry_after_s=RETRY_AFTER_S)
    message = _sentence(error.message)
    retry_after_s = error.retry_after_s or RETRY_AFTER_S
    if error.code == "overloaded":
        message += ' A request with "service_tier": "flex" waits for its turn instead.'
        return ApiError(429, message, code="overloaded", retry_after_s=retry_after_s)
    if error.code == "draining":
        return ApiError(503, message, code="draining", retry_after_s=retry_after_s)
    named = error.param if request is None else request.field_of(error.param)
    if error.param == "grammar" and named is not None:
        message = message.replace("'grammar'", f"'{named}'", 1)
    return ApiError(400, message, param=named, code=error.code)


def database_unavailable(reason: str = "The database is not reachable") -> ApiError:
    return ApiError(
        503, f"{reason}. Try again in a moment.", code="database_unavailable", retry_after_s=RETRY_AFTER_S
    )


def disk_full() -> ApiError:
    message = (
        "The server's disk is full, so nothing was stored. Try again when its operator has freed some space."
    )
    return ApiError(507, message, code="disk_full")


def internal_error() -> ApiError:
    message = "The server failed to process the request. Its log has the details."
    return ApiError(500, message, code="internal_error")


def api_error(error: ApiError | RequestError) -> ApiError:
    """Return the response for a request that cannot be served."""
    if isinstance(error, ApiError):
        return error
    status = 404 if error.code == "model_not_found" else 400
    return ApiError(status, error.message, param=error.param, code=error.code)


async def _answer_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    request.state.error_code = error.code  # for the audit log
    return error.response()


async def _answer_request_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return api_error(error).response()


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """Respond to the exceptions that Starlette itself raises: unknown path, method not allowed."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message, code = f"Unknown path: {request.method} {request.url.path}.{_hint(request)}", "not_found"
    elif error.status_code == 405:
        allowed = ", ".join(_methods_of(request))
        error.headers = {"Allow": allowed}
        message = f"{request.url.path} does not support {request.method}. Supported: {allowed}."
        code = "method_not_allowed"
    else:
        message, code = _sentence(str(error.detail)), "invalid_request"
    return ApiError(error.status_code, message, code=code, headers=dict(error.headers or {})).response()


async def _answer_validation_error(_request: Request, error: Exception) -> Response:
    """Respond to a URL parameter that is out of range or not one of the allowed values."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = str(first["loc"][-1])
    message = f"'{param}' {expectation(first)}."
    return ApiError(400, message, param=param, code="invalid_request").response()


def _hint(request: Request) -> str:
    """Say where the API is if the path is one of the API's without its prefix, or with it twice."""
    path = request.url.path
    if _methods_of(request, f"/v1{path}") or (path.startswith("/v1/v1/") and _methods_of(request, path[3:])):
        return f" The API's base URL is {request.url.scheme}://{request.url.netloc}/v1."
    return ""


def _methods_of(request: Request, path: str | None = None) -> list[str]:
    """Return all methods that a path, or that of `request`, supports; each has its own route."""
    scope = {"type": "http", "method": request.method, "path": request.url.path if path is None else path}
    routes: Sequence[Route] = request.app.state.routes
    matching = (route.methods or () for route in routes if route.matches(scope)[0] is not Match.NONE)
    return sorted({method for methods in matching for method in methods})


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].removesuffix(".") + "."


EXCEPTION_HANDLERS = {
    ApiError: _answer_api_error,
    RequestError: _answer_request_error,
    HTTPException: _answer_http_exception,
    RequestValidationError: _answer_validation_error,
}
