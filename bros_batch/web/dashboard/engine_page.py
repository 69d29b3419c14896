"""The engine: latencies of chat and bulk, how long its steps take, and what lies where in KV memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from bros_batch.web.app_state import app_state
from bros_batch.web.dashboard.chart import Chart, Series, Span, chart
from bros_batch.web.dashboard.history import MINUTE_S, EngineHistory, with_gaps
from bros_batch.web.dashboard.kv_memory import memory_picture
from bros_batch.web.dashboard.rendering import Page
from bros_batch.web.errors import engine_error
from bros_batch.web.formats import milliseconds, number, per_second, percent
from engine.wire.engine_errors import EngineGone

LANES = (("rt", "Chat"), ("be", "Bulk"))
Facts = list[tuple[str, str]]
# By the value in the URL. The shortest one has a point per second, the others have one per minute.
SPANS = {
    "5m": Span(300.0, "5 min ago"),
    "1h": Span(3600.0, "1 h ago", interval_s=MINUTE_S),
    "24h": Span(24 * 3600.0, "24 h ago", interval_s=MINUTE_S),
}
SPAN_WORDS = {"5m": "5 minutes", "1h": "1 hour", "24h": "24 hours"}


async def read_engine(request: Request, history: EngineHistory) -> Page:
    """The engine as it is now. Raises ApiError 503 if it is not reachable."""
    try:
        client = await app_state(request).engine.client()
        stats = await client.stats(with_memory=True)
    except EngineGone as error:
        raise engine_error(error) from error
    span = request.query_params.get("span", "")
    return engine_page(client.welcome.engine_id, client.welcome.model, stats, history, span)


def engine_page(
    engine_id: str, model: str, stats: Mapping[str, Any], history: EngineHistory, span: str = ""
) -> Page:
    """The page for the engine's stats."""
    span = span if span in SPANS else "5m"
    lanes: Mapping[str, Mapping[str, Any]] = stats.get("lanes", {})
    values = {
        "facts": general(engine_id, model, stats),
        "memory": memory_picture(stats["memory"], int(stats["kv_blocks"])) if "memory" in stats else None,
        "lanes": [(lane, title, lane_facts(lane, lanes.get(lane, {}))) for lane, title in LANES],
        "charts": charts(history, span),
        "span": span,
        "spans": SPAN_WORDS,
    }
    return Page("engine.html", values, live=("summary", "memory", "lanes", "charts"))


def general(engine_id: str, model: str, stats: Mapping[str, Any]) -> Facts:
    """Facts about the whole engine."""
    queried, hit = (int(stats.get(f"prefix_{each}_tokens", 0)) for each in ("queried", "hit"))
    used, host = (int(stats.get(key, 0)) for key in ("host_slots_used", "host_slots"))
    return [
        ("Engine", engine_id),
        ("Model", model),
        ("Steps", number(int(stats.get("steps", 0)))),
        ("Step p50", _percentile(stats.get("step_time", {}), "p50_s")),
        ("Preemptions", number(int(stats.get("preemptions", 0)))),
        ("Tokens truncated", number(int(stats.get("truncated_tokens", 0)))),
        ("Prefix cache hits", percent(hit / queried) if queried else "–"),
        ("Host memory used", percent(used / host) if host else "–"),
        ("Rejected", number(sum(stats.get("rejected", {}).values()))),
    ]


def lane_facts(lane: str, values: Mapping[str, Any]) -> Facts:
    """Facts about one lane."""
    facts = [("Running", number(values.get("running", 0))), ("Waiting", number(values.get("waiting", 0)))]
    for name, key in (("First token", "ttft"), ("Next token", "tpot"), ("Whole request", "e2e")):
        histogram = values.get(key, {})
        facts += [(f"{name} {p}", _percentile(histogram, f"{p}_s")) for p in ("p50", "p99")]
    facts.append(("Tokens out", number(values.get("generated_tokens", 0))))
    ratio = values.get("slo", {}).get("recent_ratio")
    if lane == "rt":
        facts.append(("Within SLO", "–" if ratio is None else percent(ratio)))
        for name, key in (("First token", "ttft"), ("Next token", "tpot")):
            slowdown = values.get("slowdown", {}).get(key, {}).get("p99")
            facts.append((f"{name} beside bulk p99", "–" if slowdown is None else _times_as_long(slowdown)))
    return facts


def _percentile(histogram: Mapping[str, Any], key: str) -> str:
    value = histogram.get(key)
    return "–" if value is None else milliseconds(value)


def _times_as_long(slowdown: float) -> str:
    """How long something took that became slower by this share: `1.05 ×`, `48 ×`."""
    factor = 1 + slowdown
    return f"{factor:.2f} ×" if factor < 9.995 else f"{number(round(factor))} ×"


def charts(history: EngineHistory, span_name: str) -> list[Chart]:
    """The charts of a span of time."""
    span = SPANS[span_name]
    points = tuple(history.seconds) if span_name == "5m" else tuple(with_gaps(history.minutes))
    return [
        chart(
            "Output tokens",
            (Series("rt_tokens", "chat", "rt"), Series("be_tokens", "bulk", "be")),
            points,
            per_second,
            span=span,
            note="Tokens generated per second.",
        ),
        chart(
            "Step time",
            (
                Series("step_s", "mean", "plain"),
                Series("limit_s", "limit", "rt"),
                Series("cap_s", "cap", "faint"),
            ),
            points,
            milliseconds,
            span=span,
            note="The limit is the time that the next step may take before a chat would be late. The cap is its "
            "highest value while chats come, because one may arrive during any step.",
        ),
        chart(
            "Chats within their SLO",
            (Series("attainment", "latest 512", "rt"),),
            points,
            percent,
            span=span,
            top=1.0,
            note="Chats whose first and next tokens came by their deadlines.",
        ),
        chart(
            "Preemptions",
            (Series("preemptions", "preemptions", "lost"),),
            points,
            per_second,
            span=span,
            least_top=1.0,
            note="Requests that gave up KV memory for more urgent ones. They continue later.",
        ),
        chart(
            "Preempted tokens",
            (
                Series("truncated", "truncated", "lost"),
                Series("copied", "copied back", "be"),
                Series("recomputed", "recomputed", "again"),
                Series("found", "found in the prefix cache", "rt"),
            ),
            points,
            per_second,
            span=span,
            note="Tokens truncated from KV memory, and the ways in which they came back.",
        ),
        chart(
            "Error of predicted step times",
            (Series("error_ratio", "median of the latest 512", "plain"),),
            points,
            percent,
            span=span,
            least_top=0.1,
            note="How far the cost model's predictions are from the times measured.",
        ),
    ]
