"""`/metrics`: the engine's counters and the database's, in Prometheus's words, read when asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bros_batch.db import jobs
from bros_batch.web.app_state import services_of
from bros_batch.web.errors import ApiError
from engine.wire.client import EngineGone

logger = logging.getLogger(__name__)

HISTOGRAMS = (
    ("bros_time_to_first_token_seconds", "ttft", "Arrival to first output token"),
    ("bros_inter_token_latency_seconds", "tpot", "Time per output token after the first, a request"),
    ("bros_e2e_request_latency_seconds", "e2e", "Arrival to last output token"),
    ("bros_request_queue_time_seconds", "queue", "Arrival to the first iteration that computed something"),
)
GAUGES = (
    ("bros_num_requests_running", "running", "Requests that hold a row of the batch"),
    ("bros_num_requests_waiting", "waiting", "Requests that wait for one"),
)
COUNTERS = (
    ("bros_prompt_tokens", "prompt_tokens", "Prompt tokens of finished requests"),
    ("bros_cached_prompt_tokens", "cached_tokens", "Of these, how many the prefix cache had"),
    ("bros_generation_tokens", "output_tokens", "Output tokens of finished requests"),
)
ENGINE_COUNTERS = (
    ("bros_prefix_cache_queries", "prefix_queried_tokens", "Tokens looked up in the prefix cache"),
    ("bros_prefix_cache_hits", "prefix_hit_tokens", "Tokens found there"),
    ("bros_preemptions", "preemptions", "Times that a request lost KV memory to another"),
    ("bros_truncated_tokens", "truncated_tokens", "Tokens whose KV was taken away so"),
    ("bros_saved_tokens", "saved_tokens", "Tokens whose KV was copied to host memory before"),
)
ENGINE_GAUGES = (
    ("bros_kv_free_blocks", "kv_free_blocks", "KV blocks to be had without taking any from a request"),
    ("bros_step_limit_seconds", "step_limit_s", "How long the latest iteration was allowed to take"),
    (
        "bros_step_cap_seconds",
        "step_cap_s",
        "The most that an iteration may take now, whatever the deadlines",
    ),
    (
        "bros_cost_model_error_ratio",
        "cost_model_error_ratio",
        "How far predicted iteration times are off, median of the latest",
    ),
)


class Snapshot(Collector):
    """One look at the engine and the database, either of which may be away (None)."""

    def __init__(self, engine: Mapping[str, Any] | None, totals: Mapping[str, int] | None) -> None:
        self._engine = engine
        self._totals = totals

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("bros_up", "Whether a part of the service answers", labels=("part",))
        up.add_metric(("engine",), float(self._engine is not None))
        up.add_metric(("database",), float(self._totals is not None))
        yield up
        if self._engine is not None:
            yield from _engine_metrics(self._engine)
        if self._totals is not None:
            yield from _database_metrics(self._totals)


def _engine_metrics(stats: Mapping[str, Any]) -> Iterable[Metric]:
    lanes: Mapping[str, Mapping[str, Any]] = stats.get("lanes", {})
    for name, key, help_text in HISTOGRAMS:
        histogram = HistogramMetricFamily(name, help_text, labels=("lane",))
        for lane, values in lanes.items():
            if key in values:
                histogram.add_metric((lane,), *_buckets(values[key]))
        yield histogram
    for name, key, help_text in GAUGES:
        gauge = GaugeMetricFamily(name, help_text, labels=("lane",))
        for lane, values in lanes.items():
            gauge.add_metric((lane,), values.get(key, 0))
        yield gauge
    for name, key, help_text in COUNTERS:
        counter = CounterMetricFamily(name, help_text, labels=("lane",))
        for lane, values in lanes.items():
            counter.add_metric((lane,), values.get(key, 0))
        yield counter
    finished = CounterMetricFamily(
        "bros_request_success", "Finished requests by reason", labels=("lane", "finished_reason")
    )
    usage = GaugeMetricFamily(
        "bros_kv_cache_usage_ratio", "Share of KV blocks that a lane holds", labels=("lane",)
    )
    blocks = stats.get("kv_blocks") or 0
    for lane, values in lanes.items():
        for reason, count in values.get("finished", {}).items():
            finished.add_metric((lane, reason), count)
        usage.add_metric((lane,), values.get("kv_blocks", 0) / blocks if blocks else 0.0)
    yield finished
    yield usage
    yield from _promises(lanes)
    for name, key, help_text in ENGINE_COUNTERS:
        yield CounterMetricFamily(name, help_text, value=stats.get(key, 0))
    for name, key, help_text in ENGINE_GAUGES:
        yield GaugeMetricFamily(name, help_text, value=stats.get(key, 0))
    for name, label, key, help_text in (
        (
            "bros_restored_tokens",
            "how",
            "restored_tokens",
            "Tokens of preempted requests that are back, by how",
        ),
        ("bros_requests_rejected", "reason", "rejected", "Rejected requests by reason"),
    ):
        counter = CounterMetricFamily(name, help_text, labels=(label,))
        for value, count in stats.get(key, {}).items():
            counter.add_metric((value,), count)
        yield counter
    if stats.get("host_slots"):
        used = stats.get("host_slots_used", 0) / stats["host_slots"]
        yield GaugeMetricFamily("bros_host_kv_usage_ratio", "Share of host KV memory in use", value=used)
    if "step_time" in stats:
        step_time = HistogramMetricFamily("bros_step_seconds", "Time of one engine step")
        step_time.add_metric((), *_buckets(stats["step_time"]))
        yield step_time


def _promises(lanes: Mapping[str, Mapping[str, Any]]) -> Iterable[Metric]:
    """Of requests that were promised TTFT and TPOT; only RT is."""
    counter = CounterMetricFamily(
        "bros_slo_requests", "Finished requests by whether both promises were kept", labels=("lane", "met")
    )
    ratio = GaugeMetricFamily(
        "bros_slo_attainment_ratio", "Share of the latest 512 requests that got both", labels=("lane",)
    )
    for lane, values in lanes.items():
        slo = values.get("slo", {})
        if lane == "rt":
            counter.add_metric((lane, "true"), slo.get("met", 0))
            counter.add_metric((lane, "false"), slo.get("missed", 0))
        if slo.get("recent_ratio") is not None:
            ratio.add_metric((lane,), slo["recent_ratio"])
    yield counter
    yield ratio


def _buckets(histogram: Mapping[str, Any]) -> tuple[list[tuple[str, float]], float]:
    """Counts per bucket to Prometheus's cumulative ones, the last of which has no bound."""
    bounds = [str(float(bound)) for bound in histogram["bounds_s"]] + ["+Inf"]
    total = 0
    buckets = []
    for bound, count in zip(bounds, histogram["counts"], strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets, float(histogram["sum_s"])


def _database_metrics(totals: Mapping[str, int]) -> Iterable[Metric]:
    items = CounterMetricFamily("bros_items", "Lines of all jobs that have ended, by how", labels=("status",))
    for status in ("succeeded", "failed", "cancelled", "expired"):
        items.add_metric((status,), totals[status])
    yield items
    total = totals["total"] - sum(
        totals[status] for status in ("succeeded", "failed", "cancelled", "expired")
    )
    waiting = GaugeMetricFamily("bros_items_open", "Lines of all jobs that have not ended")
    waiting.add_metric((), total)
    yield waiting


async def metrics(request: Request) -> Response:
    """What is known now; a part that is away is missing, and `bros_up` says so."""
    services = services_of(request)
    engine = totals = None
    try:
        client = await services.engine.client()
        engine = await client.stats()
    except EngineGone as error:
        logger.info("metrics without the engine: %s", error)
    try:
        totals = await services.read(jobs.total_counts)
    except ApiError as error:
        logger.info("metrics without the database: %s", error)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Snapshot(engine, totals))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


routes = [Route("/metrics", metrics, methods=["GET"])]
