"""`/login`, the page that asks a browser for an API key, and `/logout`. They work without the dashboard's files, which
need the key."""

from __future__ import annotations

import base64
import hashlib
import math
import time
from html import escape
from urllib.parse import parse_qs, quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from bros_batch.web.app_state import app_state
from bros_batch.web.audit import log_change
from bros_batch.web.request_body import read_body

MAX_LOGIN_BYTES = 8192
LOGIN_BODY_S = 10.0

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; display: grid; place-items: center; min-height: 90vh; margin: 0;
  background: light-dark(#f6f7f9, #14171c); color: light-dark(#1c2430, #e6e9ee); }
form { width: min(22rem, 88vw); padding: 2rem; border-radius: 12px; background: light-dark(#fff, #1d2229);
  box-shadow: 0 1px 3px #0003; }
h1 { font-size: 1.25rem; margin: 0 0 1rem; }
input, button { box-sizing: border-box; width: 100%; font: inherit; padding: .6rem .75rem; border-radius: 8px;
  border: 1px solid light-dark(#cbd2dc, #3a424e); }
input { background: light-dark(#fff, #14171c); color: inherit; margin: .25rem 0 1rem; }
button { background: #2458d3; border-color: #2458d3; color: #fff; cursor: pointer; }
.wrong { color: light-dark(#b3261e, #ff8a80); margin: 0 0 1rem; }
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>bros-batch</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<style>{style}</style></head><body>
<form method="post" action="/login?next={target}">
<h1>bros-batch</h1>{problem}
<label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button type="submit">Open the dashboard</button>
</form></body></html>
"""


# Nothing but this style and this form: a page that takes a key must not run anything else.
HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def login_page(target: str, problem: str = "", status: int = 200) -> Response:
    """Return the login form. `target` is the path to open after the login."""
    shown = f'<p class="wrong" role="alert">{escape(problem)}</p>' if problem else ""
    content = PAGE.format(style=STYLE, target=escape(quote(target)), problem=shown)
    return HTMLResponse(content, status, HEADERS)


async def login(request: Request) -> Response:
    """Show the login form, or check the key that was entered and start a session."""
    state = app_state(request)
    target = _local_path(request.query_params.get("next", "/"))
    if not await state.keys.is_needed():
        return RedirectResponse(target, 303)
    if request.method != "POST":
        return login_page(target)
    address = request.client.host if request.client else ""
    wait_s = state.login_attempts.wait_s(address, time.monotonic())
    if wait_s:
        seconds = math.ceil(wait_s)
        request.state.error_code = "too_many_logins"
        page = login_page(target, f"Too many wrong keys. Try again in {seconds} s.", 429)
        page.headers["Retry-After"] = str(seconds)
        return page
    body = await read_body(request, MAX_LOGIN_BYTES, LOGIN_BODY_S)
    entered = parse_qs(body.decode(errors="replace")).get("key", [""])[0].strip()
    key = await state.keys.find(entered)
    if key is None:
        state.login_attempts.failed(address, time.monotonic())
        request.state.error_code = "invalid_api_key"
        return login_page(target, "This key is not valid.", 401)
    request.state.key = key
    log_change(request.scope, "login")
    response = RedirectResponse(target, 303)
    state.sessions.start(response, key, time.time(), secure=request.url.scheme == "https")
    return response


async def logout(request: Request) -> Response:
    """End the session of the browser, and show the login form."""
    response = RedirectResponse("/login", 303)
    key = await app_state(request).sessions.end(request.headers, response, time.time())
    if key is not None:
        request.state.key = key
        log_change(request.scope, "logout")
    return response


def _local_path(target: str) -> str:
    """Return `target` if it is a path on this server, else the start page: a login must not lead to another site."""
    return target if target.startswith("/") and not target.startswith(("//", "/\\")) else "/"


routes = [Route("/login", login, methods=["GET", "POST"]), Route("/logout", logout, methods=["POST"])]
