"""What every page has: the header, the style, and a reader of live data that says when they are stale."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI
from nicegui import ui

from bros_batch.web.app_state import AppState
from bros_batch.web.dashboard.engine_history import EngineHistory
from bros_batch.web.dashboard.rates import JobRates
from bros_batch.web.errors import ApiError

logger = logging.getLogger(__name__)

REFRESH_S = 1.0
STYLE = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#1d2229"/>'
    '<path d="M6 9h9M6 15h6M6 21h8" stroke="#5b8cff" stroke-width="3" stroke-linecap="round"/>'
    '<path d="M26 9h-5M26 15h-8M26 21h-6" stroke="#35c08a" stroke-width="3" stroke-linecap="round"/></svg>'
)
PAGES = (("Jobs", "/"), ("Engine", "/engine"), ("Chat", "/chat"))


@dataclass(frozen=True, slots=True)
class Dashboard:
    """What pages work with."""

    app: FastAPI
    rates: JobRates
    history: EngineHistory

    @property
    def state(self) -> AppState:
        state = self.app.state.app_state
        assert isinstance(state, AppState)
        return state


@dataclass(slots=True)
class Freshness:
    """When the page's data were last read, and the banner that says so when that is long ago."""

    banner: ui.label
    read_at: float = field(default_factory=time.time)

    def succeeded(self) -> None:
        self.read_at = time.time()
        self.banner.set_visibility(False)

    def failed(self, what: str) -> None:
        shown = time.strftime("%H:%M:%S", time.localtime(self.read_at))
        self.banner.set_text(f"{what} What you see is from {shown}.")
        self.banner.set_visibility(True)


@contextmanager
def frame(dashboard: Dashboard, current: str) -> Iterator[Freshness]:
    """The page around its content."""
    ui.add_css(STYLE)
    ui.colors(primary="#2f6bff")
    with ui.element("header").classes("top"):
        ui.html(f'<a class="brand" href="/">{FAVICON}<b>bros-batch</b></a>', sanitize=False)
        with ui.element("nav"):
            for name, path in PAGES:
                link = ui.link(name, path)
                if path == current:
                    link.classes("current").props('aria-current="page"')
        engine = ui.html("", sanitize=False).classes("engine-state")
    with ui.element("div").classes("page"):
        banner = ui.label("").classes("stale").props('role="alert"')
        banner.set_visibility(False)
        yield Freshness(banner)

    def show_engine() -> None:
        client = dashboard.state.engine.connected
        known = "away" if client is None else "up"
        engine.set_content(f'<span class="dot {known}"></span>engine {known}')

    show_engine()
    ui.timer(REFRESH_S, show_engine)


def keep_fresh(freshness: Freshness, refresh: Callable[[], Awaitable[None]]) -> None:
    """Call `refresh` now and every second, and say so when it fails."""

    async def attempt() -> None:
        try:
            await refresh()
        except ApiError as error:
            freshness.failed(error.message)
        else:
            freshness.succeeded()

    ui.timer(REFRESH_S, attempt, immediate=True)
