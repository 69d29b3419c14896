"""The one page that needs no key. Plain HTML: nothing of the dashboard is served before the key is known."""

from __future__ import annotations

from html import escape
from urllib.parse import quote

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
    """HTML of the login form; `target` is the path to go to after it."""
    problem = '<p class="wrong" role="alert">This key is not valid.</p>' if failed else ""
    return PAGE.format(target=escape(quote(target)), problem=problem)
