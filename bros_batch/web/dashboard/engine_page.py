"""The engine: both lanes' latencies, how it paces itself, and what lies where in KV memory."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from time import monotonic
from typing import Any

from nicegui import ui

from bros_batch.web.dashboard.chart import Series, chart, milliseconds, per_second, percent
from bros_batch.web.dashboard.engine_history import EngineHistory
from bros_batch.web.dashboard.fragments import facts, number
from bros_batch.web.dashboard.frame import Dashboard, frame, keep_fresh
from bros_batch.web.dashboard.memory_picture import memory_picture
from bros_batch.web.errors import engine_error
from engine.wire.client import EngineGone

LANES = (("rt", "Real-time"), ("be", "Best-effort"))


def engine_page(dashboard: Dashboard) -> None:
    with frame(dashboard, "/engine") as freshness:
        ui.html("<h1>Engine</h1>", sanitize=False).classes("title")
        body = ui.html('<p class="empty">Asking the engine.</p>', sanitize=False)

        async def refresh() -> None:
            try:
                client = await dashboard.state.engine.client()
                stats = await client.stats(with_memory=True)
            except EngineGone as error:
                raise engine_error(error) from error
            dashboard.history.observe(monotonic(), stats)
            body.set_content(
                engine_html(client.welcome.engine_id, client.welcome.model, stats, dashboard.history)
            )

        keep_fresh(freshness, refresh)


def engine_html(engine_id: str, model: str, stats: Mapping[str, Any], history: EngineHistory) -> str:
    lanes: Mapping[str, Mapping[str, Any]] = stats.get("lanes", {})
    parts = [f'<section class="panel">{facts(_general(engine_id, model, stats))}</section>']
    if "memory" in stats:
        picture = memory_picture(stats["memory"], int(stats["kv_blocks"]))
        parts.append(f'<section class="panel"><h2>KV memory</h2>{picture}</section>')
    parts.append('<div class="lanes">')
    for lane, title in LANES:
        values = facts(_lane(lane, lanes.get(lane, {})))
        parts.append(f'<section class="panel {lane}"><h2>{title}</h2>{values}</section>')
    return "".join((*parts, "</div>", '<div class="charts">', *_charts(history), "</div>"))


def _general(engine_id: str, model: str, stats: Mapping[str, Any]) -> list[tuple[str, str]]:
    queried, hit = (int(stats.get(f"prefix_{each}_tokens", 0)) for each in ("queried", "hit"))
    used, host = (int(stats.get(key, 0)) for key in ("host_slots_used", "host_slots"))
    return [
        ("Engine", escape(engine_id)),
        ("Model", escape(model)),
        ("Iterations", number(int(stats.get("steps", 0)))),
        ("Step p50", _percentile(stats.get("step_time", {}), "p50_s")),
        ("Preemptions", number(int(stats.get("preemptions", 0)))),
        ("Tokens truncated", number(int(stats.get("truncated_tokens", 0)))),
        ("Prefix cache hits", percent(hit / queried) if queried else "–"),
        ("Host memory used", percent(used / host) if host else "–"),
        ("Rejected", number(sum(stats.get("rejected", {}).values()))),
    ]


def _lane(lane: str, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = [("Running", number(values.get("running", 0))), ("Waiting", number(values.get("waiting", 0)))]
    for name, key in (("First token", "ttft"), ("Next token", "tpot"), ("Whole request", "e2e")):
        histogram = values.get(key, {})
        pairs += [(f"{name} {p}", _percentile(histogram, f"{p}_s")) for p in ("p50", "p99")]
    pairs.append(("Tokens out", number(values.get("generated_tokens", 0))))
    ratio = values.get("slo", {}).get("recent_ratio")
    if lane == "rt":
        pairs.append(("In time", "–" if ratio is None else percent(ratio)))
    return pairs


def _percentile(histogram: Mapping[str, Any], key: str) -> str:
    value = histogram.get(key)
    return "–" if value is None else milliseconds(value)


def _charts(history: EngineHistory) -> list[str]:
    points = tuple(history.points)
    return [
        chart(
            "Output tokens",
            (Series("rt_tokens", "real-time", "rt"), Series("be_tokens", "best-effort", "be")),
            points,
            per_second,
        ),
        chart(
            "Iteration time",
            (
                Series("iteration_s", "mean", "plain"),
                Series("limit_s", "limit", "rt"),
                Series("cap_s", "cap", "faint"),
            ),
            points,
            milliseconds,
        ),
        chart(
            "Real-time requests in time",
            (Series("attainment", "latest 512", "rt"),),
            points,
            percent,
            top=1.0,
        ),
        chart(
            "Preemptions", (Series("preemptions", "preemptions", "lost"),), points, per_second, least_top=1.0
        ),
        chart(
            "Tokens taken from memory and brought back",
            (
                Series("truncated", "taken", "lost"),
                Series("copied", "copied back", "be"),
                Series("recomputed", "recomputed", "again"),
                Series("found", "found in the cache", "rt"),
            ),
            points,
            per_second,
        ),
        chart(
            "Error of predicted iteration times",
            (Series("error_ratio", "median of the latest 512", "plain"),),
            points,
            percent,
            least_top=0.1,
        ),
    ]
