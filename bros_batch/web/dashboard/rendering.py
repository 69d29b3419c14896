"""Rendering of pages and of their live parts from the templates, with every value escaped."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from bros_batch.web import formats
from bros_batch.web.dashboard import job_words
from bros_batch.web.dashboard.engine_word import EngineWord

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"
STATIC_FILES = frozenset(path.name for path in STATIC.iterdir())
# A hash of all static files.
VERSION = hashlib.sha256(b"".join((STATIC / name).read_bytes() for name in sorted(STATIC_FILES))).hexdigest()[
    :12
]
# The policy allows no inline scripts or styles, so injected markup could not run.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Vary": "Accept",
}


@dataclass(frozen=True, slots=True)
class Page:
    """A snapshot of a page. `live` names the template blocks that the event stream refreshes; each is in an element
    whose id is the name of the block."""

    template: str
    values: Mapping[str, object]
    live: tuple[str, ...] = ()
    status: int = 200


def asset(name: str) -> str:
    """The URL of a static file. It contains the version, so that browsers can keep the file, and so that scripts that
    import each other by relative paths are all of one version."""
    return f"/static/{VERSION}/{name}"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(
        number=formats.number,
        duration=formats.duration,
        time_left=formats.time_left,
        local_time=formats.local_time,
        short_time=formats.milliseconds,
        status_word=job_words.status_word,
        took_s=job_words.took_s,
        being_computed=job_words.being_computed,
    )
    environment.globals["asset"] = asset
    # A global, since blocks that are rendered on their own do not see the imports of their template.
    environment.globals["ui"] = environment.get_template("macros.html").module
    return environment


ENVIRONMENT = _environment()


def html(page: Page, *, engine: EngineWord, has_session: bool) -> Response:
    """The whole page. One that was opened with a session has a button to end it."""
    template = ENVIRONMENT.get_template(page.template)
    content = template.render({"problem": None, **page.values, "engine": engine, "has_session": has_session})
    return HTMLResponse(content, page.status, HEADERS)


def fragments(page: Page) -> dict[str, str]:
    """The HTML of the page's live blocks, by name."""
    template = ENVIRONMENT.get_template(page.template)
    context = template.new_context(dict(page.values))
    return {name: "".join(template.blocks[name](context)) for name in page.live}


def engine_state(engine: EngineWord) -> str:
    """The HTML of the header's note about the engine, which is live on every page."""
    template = ENVIRONMENT.get_template("layout.html")
    return "".join(template.blocks["engine_state"](template.new_context({"engine": engine})))
