"""The engine: both lanes' latencies, what they hold of KV memory, and tokens a second over the last minutes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from html import escape
from time import monotonic
from typing import Any

from nicegui import ui

from bros_batch.web.dashboard.fragments import facts, number
from bros_batch.web.dashboard.frame import Dashboard, frame, keep_fresh
from bros_batch.web.errors import of_engine
from engine.wire.client import EngineGone

LANES = (("rt", "Real-time"), ("be", "Best-effort"))
HISTORY_POINTS = 120


class TokenHistory:
    """Output tokens a second of each lane, a point a refresh."""

    def __init__(self) -> None:
        self.points: deque[tuple[float, float]] = deque(maxlen=HISTORY_POINTS)
        self._last: tuple[float, int, int] | None = None

    def observe(self, now_s: float, lanes: Mapping[str, Mapping[str, Any]]) -> None:
        counts = [int(lanes.get(lane, {}).get("output_tokens", 0)) for lane, _ in LANES]
        if self._last is not None and now_s > self._last[0]:
            elapsed_s = now_s - self._last[0]
            # Counters of an engine that began anew are smaller than before.
            rates = [
                max(0.0, (new - old) / elapsed_s) for new, old in zip(counts, self._last[1:], strict=True)
            ]
            self.points.append((rates[0], rates[1]))
        self._last = (now_s, counts[0], counts[1])


def engine_page(dashboard: Dashboard) -> None:
    history = TokenHistory()
    with frame(dashboard, "/engine") as freshness:
        ui.html("<h1>Engine</h1>", sanitize=False).classes("title")
        body = ui.html('<p class="empty">Asking the engine.</p>', sanitize=False)

        async def refresh() -> None:
            try:
                client = await dashboard.services.engine.client()
                stats = await client.stats()
            except EngineGone as error:
                raise of_engine(error) from error
            history.observe(monotonic(), stats.get("lanes", {}))
            body.set_content(engine_html(client.welcome.engine_id, client.welcome.model, stats, history))

        keep_fresh(freshness, refresh)


def engine_html(engine_id: str, model: str, stats: Mapping[str, Any], history: TokenHistory) -> str:
    lanes: Mapping[str, Mapping[str, Any]] = stats.get("lanes", {})
    general = [
        ("Engine", escape(engine_id)),
        ("Model", escape(model)),
        ("Iterations", number(int(stats.get("steps", 0)))),
        ("Iteration p50", _milliseconds(stats.get("iteration", {}), "p50_s")),
        ("Preemptions", number(int(stats.get("preemptions", 0)))),
        ("Tokens truncated", number(int(stats.get("truncated_tokens", 0)))),
    ]
    parts = ['<section class="panel">', facts(general), "</section>"]
    parts += [f'<section class="panel"><h2>KV memory</h2>{_memory(stats, lanes)}</section>']
    parts += [
        f'<section class="panel"><h2>Output tokens a second</h2>{_chart(history)}</section>',
        '<div class="lanes">',
    ]
    for lane, title in LANES:
        parts.append(
            f'<section class="panel {lane}"><h2>{title}</h2>{facts(_lane(lanes.get(lane, {})))}</section>'
        )
    return "".join((*parts, "</div>"))


def _lane(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = [("Running", number(values.get("running", 0))), ("Waiting", number(values.get("waiting", 0)))]
    for name, key in (("First token", "ttft"), ("Next token", "tpot"), ("Whole request", "e2e")):
        histogram = values.get(key, {})
        pairs += [(f"{name} {p}", _milliseconds(histogram, f"{p}_s")) for p in ("p50", "p99")]
    return [*pairs, ("Tokens out", number(values.get("output_tokens", 0)))]


def _milliseconds(histogram: Mapping[str, Any], key: str) -> str:
    value = histogram.get(key)
    if value is None:
        return "–"
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


def _memory(stats: Mapping[str, Any], lanes: Mapping[str, Mapping[str, Any]]) -> str:
    """RT from the left, BE from the right, as in each block."""
    blocks = int(stats.get("kv_blocks", 0)) or 1
    rt, be = (int(lanes.get(lane, {}).get("kv_blocks", 0)) for lane, _ in LANES)
    widths = [f"{min(100.0, 100 * held / blocks):.2f}%" for held in (rt, be)]
    return (
        f'<div class="memory"><i class="rt" style="width:{widths[0]}"></i>'
        f'<i class="be" style="width:{widths[1]}"></i></div>'
        f'<p class="legend"><span class="rt">real-time {number(rt)}</span> · '
        f'<span class="be">best-effort {number(be)}</span> of {number(blocks)} blocks</p>'
    )


def _chart(history: TokenHistory) -> str:
    """Two lines over the last two minutes, drawn as SVG."""
    top = max((max(point) for point in history.points), default=0.0) or 1.0
    lines = []
    for index, (lane, _) in enumerate(LANES):
        points = [
            f"{600 - 5 * (len(history.points) - 1 - i)},{118 - 112 * point[index] / top:.1f}"
            for i, point in enumerate(history.points)
        ]
        lines.append(f'<polyline class="{lane}" points="{" ".join(points)}"/>')
    return (
        f'<svg class="chart" viewBox="0 0 600 120" preserveAspectRatio="none" role="img" '
        f'aria-label="Output tokens a second">{"".join(lines)}</svg>'
        f'<p class="legend">up to {number(round(top))} tok/s · <span class="rt">real-time</span> · '
        f'<span class="be">best-effort</span> · last two minutes</p>'
    )
