"""How the engine is, in the word that the header of every page shows."""

from __future__ import annotations

from typing import Literal

from starlette.requests import Request

from bros_batch.web.app_state import app_state

EngineWord = Literal["up", "late", "away"]


def engine_word(request: Request) -> EngineWord:
    """`late` is an engine that has not answered for a second: it may be busy, stopped or gone."""
    engine = app_state(request).engine
    if engine.connected is None:
        return "away"
    return "late" if engine.is_late else "up"
