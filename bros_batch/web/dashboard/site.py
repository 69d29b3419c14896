"""The dashboard's routes: pages, each with its event stream under the same URL, static files, and form targets."""

from __future__ import annotations

from functools import partial

from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from bros_batch.web.dashboard import chat_page, job_page, new_job_page, row_page
from bros_batch.web.dashboard.bulk_changes import change_jobs
from bros_batch.web.dashboard.chat_page import read_chat
from bros_batch.web.dashboard.engine_page import read_engine
from bros_batch.web.dashboard.engine_word import engine_word
from bros_batch.web.dashboard.error_groups import ErrorReports
from bros_batch.web.dashboard.events import Read, event_stream
from bros_batch.web.dashboard.history import EngineHistory
from bros_batch.web.dashboard.job_page import read_job
from bros_batch.web.dashboard.jobs_page import read_jobs
from bros_batch.web.dashboard.markdown import format_markdown
from bros_batch.web.dashboard.rendering import STATIC, STATIC_FILES, VERSION, Page, html
from bros_batch.web.dashboard.row_page import read_row
from bros_batch.web.dashboard.table_download import TableDownloads
from bros_batch.web.dashboard.table_upload import TableUploads
from bros_batch.web.errors import ApiError

GZIP_LEVEL = 5


def dashboard_routes(history: EngineHistory) -> list[Route]:
    """All routes of the dashboard. They share the history of the engine, which a task fills."""
    reports = ErrorReports()
    return [
        _page("/", read_jobs),
        _page("/jobs/{job_id}", partial(read_job, reports=reports)),
        _page("/new", new_job_page.read_new_job),
        Route("/new/table", TableUploads().receive, methods=["POST"]),
        Route("/new/preview", new_job_page.preview, methods=["POST"]),
        Route("/new/try", new_job_page.try_row, methods=["POST"]),
        Route("/new/forecast", new_job_page.forecast, methods=["POST"]),
        Route("/new/start", new_job_page.start, methods=["POST"]),
        Route("/jobs", _home),
        Route("/jobs", change_jobs, methods=["POST"]),
        _page("/jobs/{job_id}/rows/{row}", read_row),
        Route("/jobs/{job_id}/table/{kind}", TableDownloads().send),
        Route("/jobs/{job_id}/rows/{row}/rerun", row_page.rerun, methods=["POST"]),
        Route("/jobs/{job_id}/{change}", job_page.change, methods=["POST"]),
        _page("/engine", partial(read_engine, history=history)),
        _page("/chat", read_chat),
        Route("/chat", chat_page.answer, methods=["POST"]),
        Route("/chat/markdown", format_markdown, methods=["POST"]),
        Route("/static/{version}/{name}", _static_file),
    ]


def dashboard_site(routes: list[Route]) -> ASGIApp:
    """The application that serves the routes, compressed, and answers everything else with 404."""
    return GZipMiddleware(Router(routes, default=_not_found), compresslevel=GZIP_LEVEL)


def _page(path: str, read: Read) -> Route:
    """A route that responds with the page, or with its event stream if the client accepts events."""

    async def respond(request: Request) -> Response | ASGIApp:
        if "text/event-stream" in request.headers.get("accept", ""):
            return event_stream(request, read)
        try:
            page = await read(request)
        except ApiError as error:
            if not _wants_page(request):
                raise
            # The script of this page reloads it as soon as the stream has data.
            page = Page("unavailable.html", {"problem": error.message}, status=error.status)
        if page.status == 404 and not _wants_page(request):
            raise HTTPException(404)
        return _answer(request, page)

    return Route(path, respond)


async def _home(_request: Request) -> Response:
    """The list of jobs is at the root."""
    return RedirectResponse("/", 307)


def _wants_page(request: Request) -> bool:
    """Return whether an error should be a page: a browser asks for HTML, other clients get the API's JSON."""
    return "text/html" in request.headers.get("accept", "")


def _answer(request: Request, page: Page) -> Response:
    return html(
        page, engine=engine_word(request), has_session=getattr(request.state, "key", None) is not None
    )


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """A page for browsers, and the API's JSON error for other clients."""
    request = Request(scope, receive)
    if not _wants_page(request):
        raise HTTPException(404)
    page = Page("404.html", {"heading": "Page not found", "what": request.url.path}, status=404)
    await _answer(request, page)(scope, receive, send)


async def _static_file(request: Request) -> Response:
    """A file of the pages. Its URL contains its version, so browsers may keep it forever."""
    name, version = request.path_params["name"], request.path_params["version"]
    if name not in STATIC_FILES:
        raise HTTPException(404)
    # A page that was opened before an upgrade gets the new file, but must not keep it under the old version.
    kept = "private, max-age=31536000, immutable" if version == VERSION else "no-store"
    return FileResponse(STATIC / name, headers={"Cache-Control": kept})
