"""Chat through the fast lane, with the time its first token took."""

from __future__ import annotations

import contextlib
import json
from time import perf_counter

from nicegui import ui

from bros_batch.openai_api.completion_request import parse_body
from bros_batch.openai_api.endpoints import CHAT_COMPLETIONS
from bros_batch.request_error import RequestError
from bros_batch.web.dashboard.frame import Dashboard, frame
from bros_batch.web.errors import ApiError
from bros_batch.web.generation import plan_generation


def chat_page(dashboard: Dashboard) -> None:
    turns: list[dict[str, str]] = []
    busy = False
    with frame(dashboard, "/chat"):
        ui.html("<h1>Chat</h1>", sanitize=False).classes("title")
        with ui.element("div").classes("talk").props('aria-live="polite"') as talk:
            pass
        with ui.element("form").classes("ask").on("submit.prevent", lambda: send()):
            question = (
                ui.input(placeholder="Ask something").props("outlined dense autofocus").classes("question")
            )
            question.props('aria-label="Your message" autocomplete="off"')
            button = ui.button("Send").props("type=submit no-caps unelevated")

        async def send() -> None:
            nonlocal busy
            text = (question.value or "").strip()
            if busy or not text:
                return
            busy = True
            question.set_value("")
            button.disable()
            turns.append({"role": "user", "content": text})
            with talk:
                ui.label(text).classes("turn mine")
                answer = ui.label("").classes("turn theirs")
                note = ui.label("").classes("note")
            try:
                content = await stream_answer(dashboard, turns, answer, note)
                turns.append({"role": "assistant", "content": content})
            except (ApiError, RequestError) as error:
                turns.pop()
                note.set_text(error.message)
                note.classes("wrong")
            finally:
                busy = False
                button.enable()


async def stream_answer(
    dashboard: Dashboard, turns: list[dict[str, str]], answer: ui.label, note: ui.label
) -> str:
    """Show the answer as it comes; its whole text in the end."""
    state = dashboard.state
    body = {"model": state.settings.model_name, "messages": turns}
    begun_s = perf_counter()
    first_s: float | None = None
    content = ""
    generation = await plan_generation(state, parse_body(CHAT_COMPLETIONS, json.dumps(body)))
    async with contextlib.aclosing(generation.updates()) as updates:
        async for update in updates:
            if update.piece.text and first_s is None:
                first_s = perf_counter() - begun_s
            content += update.piece.text
            answer.set_text(content)
    tokens, whole_s = generation.usage.completion_tokens, perf_counter() - begun_s
    first = "no text" if first_s is None else f"first token after {first_s * 1000:.0f} ms"
    note.set_text(f"{first} · {tokens} tokens in {whole_s:.1f} s")
    return content
