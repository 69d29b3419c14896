"""Sessions of browsers: a signed cookie that names the API key it was opened with, and is valid only as long as it."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import Response

from bros_batch.web.api_key import Key, KeyRing

COOKIE = "bros_session"
SESSION_S = 12 * 3600


class Sessions:
    """Opens, finds and ends sessions.

    The signature covers the key, so a changed key ends its sessions. It is made with the server's key, or, if the
    server has none, with a secret of this process: otherwise, whoever reads the database could make sessions. That a
    user has ended a session is known to this process only.
    """

    def __init__(self, keys: KeyRing, server_key: str | None) -> None:
        self._keys = keys
        self._secret = (server_key or secrets.token_hex(32)).encode()
        self._ended: dict[str, int] = {}

    def value(self, key: Key, until: int, nonce: str) -> str:
        """Return the cookie's value. `until` is in Unix seconds; the nonce tells sessions apart."""
        signed = f"session {key.id} {key.sha256} {until} {nonce}"
        signature = hmac.new(self._secret, signed.encode(), hashlib.sha256).hexdigest()
        return f"{key.id}.{until}.{nonce}.{signature}"

    def start(self, response: Response, key: Key, now_s: float, *, secure: bool) -> None:
        """Add a session of SESSION_S seconds to `response`."""
        value = self.value(key, int(now_s) + SESSION_S, secrets.token_hex(8))
        response.set_cookie(COOKIE, value, max_age=SESSION_S, httponly=True, samesite="lax", secure=secure)

    async def key_of(self, headers: Headers, now_s: float) -> Key | None:
        """Return the key of a request's session, if the session is valid."""
        value = _cookie(headers)
        key_id, _, rest = value.partition(".")
        until, _, rest = rest.partition(".")
        nonce, _, _ = rest.partition(".")
        if not until.isascii() or not until.isdecimal() or len(until) > 12:
            return None
        if int(until) <= now_s or value in self._ended:
            return None
        key = await self._keys.get(key_id)
        if key is None:
            return None
        is_signed = hmac.compare_digest(value.encode(), self.value(key, int(until), nonce).encode())
        return key if is_signed else None

    async def end(self, headers: Headers, response: Response, now_s: float) -> Key | None:
        """End a request's session, and remove the cookie. Returns the key of the session, if it was valid."""
        key = await self.key_of(headers, now_s)
        if key is not None:
            self._ended = {value: until for value, until in self._ended.items() if until > now_s}
            value = _cookie(headers)
            self._ended[value] = int(value.split(".")[1])
        response.delete_cookie(COOKIE, httponly=True, samesite="lax")
        return key


def _cookie(headers: Headers) -> str:
    # As browsers read it. The standard library drops all cookies because of one that it does not understand, such as
    # one of another program on localhost.
    return cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
