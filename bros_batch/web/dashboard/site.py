"""The dashboard's pages, and how they hang under the API's application."""

from __future__ import annotations

from fastapi import FastAPI
from nicegui import ui
from starlette.routing import Mount
from starlette.types import ASGIApp

from bros_batch.web.dashboard.chat_page import chat_page
from bros_batch.web.dashboard.engine_history import EngineHistory
from bros_batch.web.dashboard.engine_page import engine_page
from bros_batch.web.dashboard.frame import FAVICON, Dashboard
from bros_batch.web.dashboard.job_page import job_page
from bros_batch.web.dashboard.jobs_page import jobs_page
from bros_batch.web.dashboard.rates import JobRates


def mount_dashboard(app: FastAPI) -> ASGIApp:
    """Make the pages, and answer with the ASGI application that serves them. Once a process."""
    dashboard = Dashboard(app, JobRates(), EngineHistory())

    @ui.page("/")
    def _jobs() -> None:
        jobs_page(dashboard)

    @ui.page("/jobs/{job_id}")
    def _job(job_id: str) -> None:
        job_page(dashboard, job_id)

    @ui.page("/engine")
    def _engine() -> None:
        engine_page(dashboard)

    @ui.page("/chat")
    def _chat() -> None:
        chat_page(dashboard)

    ui.run_with(app, title="bros-batch", favicon=FAVICON, dark=None, show_welcome_message=False)
    # It mounted itself at the root, where it would answer for every path; create_app asks it last instead.
    mount = app.router.routes.pop()
    assert isinstance(mount, Mount)
    return mount.app
