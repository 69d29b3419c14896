"""The signed cookie that a browser gets in exchange for an API key."""

from __future__ import annotations

import hashlib
import hmac
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers
from starlette.responses import Response

COOKIE = "bros_session"
SESSION_S = 12 * 3600


def session_value(key: str, until: int) -> str:
    """Return `until.signature`, signed with the API key: a new key ends every session. `until` is in Unix seconds."""
    signature = hmac.new(key.encode(), f"session until {until}".encode(), hashlib.sha256).hexdigest()
    return f"{until}.{signature}"


def set_session(response: Response, key: str, now_s: float, *, secure: bool) -> None:
    """Add a session of SESSION_S seconds to `response`."""
    response.set_cookie(
        COOKIE,
        session_value(key, int(now_s) + SESSION_S),
        max_age=SESSION_S,
        httponly=True,
        samesite="lax",
        secure=secure,
    )


def has_session(key: str, headers: Headers, now_s: float) -> bool:
    """Return whether a request has a session that was signed with `key` and has not expired."""
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return False
    until = "" if morsel is None else morsel.value.partition(".")[0]
    if morsel is None or not until.isdecimal() or len(until) > 12:
        return False
    is_signed = hmac.compare_digest(morsel.value.encode(), session_value(key, int(until)).encode())
    return is_signed and int(until) > now_s
