"""`/login`: the page that asks a browser for an API key. It works without the dashboard, which needs the key."""

from __future__ import annotations

import time
from html import escape
from urllib.parse import parse_qs, quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from bros_batch.web.api_key import is_valid_key
from bros_batch.web.app_state import app_state
from bros_batch.web.request_body import read_body
from bros_batch.web.session_cookie import set_session

MAX_LOGIN_BYTES = 8192

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>bros-batch</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; display: grid; place-items: center; min-height: 90vh; margin: 0;
  background: light-dark(#f6f7f9, #14171c); color: light-dark(#1c2430, #e6e9ee); }}
form {{ width: min(22rem, 88vw); padding: 2rem; border-radius: 12px; background: light-dark(#fff, #1d2229);
  box-shadow: 0 1px 3px #0003; }}
h1 {{ font-size: 1.25rem; margin: 0 0 1rem; }}
input, button {{ box-sizing: border-box; width: 100%; font: inherit; padding: .6rem .75rem; border-radius: 8px;
  border: 1px solid light-dark(#cbd2dc, #3a424e); }}
input {{ background: light-dark(#fff, #14171c); color: inherit; margin: .25rem 0 1rem; }}
button {{ background: #2458d3; border-color: #2458d3; color: #fff; cursor: pointer; }}
.wrong {{ color: light-dark(#b3261e, #ff8a80); margin: 0 0 1rem; }}
</style></head><body>
<form method="post" action="/login?next={target}">
<h1>bros-batch</h1>{problem}
<label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button type="submit">Open the dashboard</button>
</form></body></html>
"""


def login_page(target: str, *, failed: bool) -> str:
    """Return the HTML of the login form. `target` is the path to open after the login."""
    problem = '<p class="wrong" role="alert">This key is not valid.</p>' if failed else ""
    return PAGE.format(target=escape(quote(target)), problem=problem)


async def login(request: Request) -> Response:
    """Show the login form, or check the key that was entered and start a session."""
    state = app_state(request)
    server_key = state.settings.api_key
    target = _local_path(request.query_params.get("next", "/"))
    if not server_key:
        return RedirectResponse(target, 303)
    if request.method == "GET":
        return HTMLResponse(login_page(target, failed=False))
    fields = parse_qs((await read_body(request, MAX_LOGIN_BYTES)).decode(errors="replace"))
    entered = fields.get("key", [""])[0].strip()
    if not await is_valid_key(state, entered):
        return HTMLResponse(login_page(target, failed=True), 401)
    response = RedirectResponse(target, 303)
    set_session(response, server_key, time.time(), secure=request.url.scheme == "https")
    return response


def _local_path(target: str) -> str:
    """Return `target` if it is a path on this server, else the start page: a login must not lead to another site."""
    return target if target.startswith("/") and not target.startswith(("//", "/\\")) else "/"


routes = [Route("/login", login, methods=["GET", "POST"])]
