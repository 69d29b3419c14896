"""`/metrics`: the statistics of the engine and the database in Prometheus format, read at each scrape."""

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
from bros_batch.db.states import ENDED_ITEM
from bros_batch.web.app_state import app_state
from bros_batch.web.errors import ApiError
from engine.wire.engine_errors import EngineGone

logger = logging.getLogger(__name__)

# Per lane: name, key in the lane's statistics, help text.
HISTOGRAMS = (
    ("bros_time_to_first_token_seconds", "ttft", "Time from arrival to the first output token"),
    ("bros_inter_token_latency_seconds", "tpot", "Mean time per output token after the first, per request"),
    ("bros_e2e_request_latency_seconds", "e2e", "Time from arrival to the last output token"),
    (
        "bros_request_queue_time_seconds",
        "queue",
        "Time from arrival to the first step that computes the request",
    ),
)
GAUGES = (
    ("bros_num_requests_running", "running", "Requests that have a row in the batch"),
    ("bros_num_requests_waiting", "waiting", "Requests that wait for a row in the batch"),
)
COUNTERS = (
    ("bros_prompt_tokens", "prompt_tokens", "Prompt tokens of finished requests"),
    (
        "bros_cached_prompt_tokens",
        "cached_tokens",
        "Prompt tokens of finished requests found in the prefix cache",
    ),
    ("bros_generation_tokens", "output_tokens", "Output tokens of finished requests"),
    (
        "bros_step_tokens",
        "planned_tokens",
        "Prompt and output tokens in steps, again where preemption or a restart lost them",
    ),
)
# Per engine: name, key in the engine's statistics, help text.
ENGINE_COUNTERS = (
    ("bros_prefix_cache_queries", "prefix_queried_tokens", "Tokens looked up in the prefix cache"),
    ("bros_prefix_cache_hits", "prefix_hit_tokens", "Tokens found in the prefix cache"),
    ("bros_step_failures", "step_failures", "Requests that failed in a step while the others went on"),
    (
        "bros_graph_failures",
        "graph_failures",
        "CUDA graphs that could not be replayed; their steps run without them",
    ),
    ("bros_grammars_compiled", "grammars_compiled", "Grammars that were compiled"),
    ("bros_grammars_cached", "grammars_cached", "Requests for a grammar that was compiled before"),
    ("bros_grammars_failed", "grammars_failed", "Grammars that cannot be used"),
    ("bros_grammar_compile_seconds", "grammar_compile_s", "Time that compiling grammars took"),
    ("bros_masks", "masks", "Masks computed, one per token of an output with a grammar"),
    ("bros_mask_seconds", "mask_s", "Time that computing masks took, beside the steps"),
    ("bros_forced_tokens", "forced_tokens", "Output tokens that a grammar left no choice about"),
    ("bros_preemptions", "preemptions", "Times a request was preempted, losing KV slots to another request"),
    ("bros_truncated_tokens", "truncated_tokens", "Tokens whose KV slots were lost to preemption"),
    (
        "bros_saved_tokens",
        "saved_tokens",
        "Tokens whose KV was copied to host memory before it was overwritten",
    ),
)
ENGINE_GAUGES = (
    ("bros_kv_free_blocks", "kv_free_blocks", "KV blocks available without preempting a request"),
    ("bros_step_limit_seconds", "step_limit_s", "Time limit of the latest step"),
    (
        "bros_step_cap_seconds",
        "step_cap_s",
        "Upper bound of the time limit of a step, regardless of deadlines",
    ),
    (
        "bros_cost_model_error_ratio",
        "cost_model_error_ratio",
        "Median relative error of the predicted duration of recent steps",
    ),
)
# Per engine, by a label: name, label, key in the engine's statistics, help text.
LABELED_ENGINE_COUNTERS = (
    ("bros_restored_tokens", "how", "restored_tokens", "Tokens restored after preemption, by method"),
    ("bros_requests_rejected", "reason", "rejected", "Rejected requests, by reason"),
)


class Snapshot(Collector):
    """Statistics of the engine and the database at one time. Either is None if it is unavailable."""

    def __init__(self, engine: Mapping[str, Any] | None, totals: Mapping[str, int] | None) -> None:
        self._engine = engine
        self._totals = totals

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("bros_up", "Whether a part of the service responds", labels=("part",))
        up.add_metric(("engine",), float(self._engine is not None))
        up.add_metric(("database",), float(self._totals is not None))
        yield up
        if self._engine is not None:
            yield from _lane_metrics(self._engine)
            yield from _engine_metrics(self._engine)
        if self._totals is not None:
            yield from _item_metrics(self._totals)


def _lane_metrics(stats: Mapping[str, Any]) -> Iterable[Metric]:
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
        "bros_request_success", "Finished requests, by finish reason", labels=("lane", "finished_reason")
    )
    usage = GaugeMetricFamily(
        "bros_kv_cache_usage_ratio", "Share of the KV blocks in which a lane has slots", labels=("lane",)
    )
    blocks = stats.get("kv_blocks") or 0
    for lane, values in lanes.items():
        for reason, count in values.get("finished", {}).items():
            finished.add_metric((lane, reason), count)
        usage.add_metric((lane,), values.get("kv_blocks", 0) / blocks if blocks else 0.0)
    yield finished
    yield usage
    yield from _slo_metrics(lanes)


def _slo_metrics(lanes: Mapping[str, Mapping[str, Any]]) -> Iterable[Metric]:
    """Yield the metrics of requests with an SLO, which only the RT lane has."""
    counter = CounterMetricFamily(
        "bros_slo_requests", "Finished requests by whether TTFT and TPOT met the SLO", labels=("lane", "met")
    )
    ratio = GaugeMetricFamily(
        "bros_slo_attainment_ratio", "Share of the latest 512 requests that met the SLO", labels=("lane",)
    )
    for lane, values in lanes.items():
        slo = values.get("slo", {})
        if lane == "rt":
            counter.add_metric((lane, "true"), slo.get("met", 0))
            counter.add_metric((lane, "false"), slo.get("missed", 0))
        if slo.get("recent_ratio") is not None:
            ratio.add_metric((lane,), slo["recent_ratio"])
    slowdown = GaugeMetricFamily(
        "bros_slowdown_ratio",
        "By how much bulk made the latest 512 chats slower, by the cost model; 0 is not at all",
        labels=("lane", "token", "quantile"),
    )
    for token, key in (("first", "ttft"), ("next", "tpot")):
        for percentile, quantile in (("p50", "0.5"), ("p99", "0.99")):
            value = lanes.get("rt", {}).get("slowdown", {}).get(key, {}).get(percentile)
            if value is not None:
                slowdown.add_metric(("rt", token, quantile), value)
    yield counter
    yield ratio
    yield slowdown


def _engine_metrics(stats: Mapping[str, Any]) -> Iterable[Metric]:
    for name, key, help_text in ENGINE_COUNTERS:
        yield CounterMetricFamily(name, help_text, value=stats.get(key, 0))
    for name, key, help_text in ENGINE_GAUGES:
        yield GaugeMetricFamily(name, help_text, value=stats.get(key, 0))
    for name, label, key, help_text in LABELED_ENGINE_COUNTERS:
        counter = CounterMetricFamily(name, help_text, labels=(label,))
        for value, count in stats.get(key, {}).items():
            counter.add_metric((value,), count)
        yield counter
    if stats.get("host_slots"):
        used = stats.get("host_slots_used", 0) / stats["host_slots"]
        yield GaugeMetricFamily("bros_host_kv_usage_ratio", "Share of the host KV memory in use", value=used)
    if "step_time" in stats:
        step_time = HistogramMetricFamily("bros_step_seconds", "Duration of one engine step")
        step_time.add_metric((), *_buckets(stats["step_time"]))
        yield step_time


def _buckets(histogram: Mapping[str, Any]) -> tuple[list[tuple[str, float]], float]:
    """Convert counts per bucket to Prometheus's cumulative counts; the last bucket has no upper bound."""
    bounds = [str(float(bound)) for bound in histogram["bounds_s"]] + ["+Inf"]
    total = 0
    buckets = []
    for bound, count in zip(bounds, histogram["counts"], strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets, float(histogram["sum_s"])


def _item_metrics(totals: Mapping[str, int]) -> Iterable[Metric]:
    items = CounterMetricFamily(
        "bros_items", "Items of all jobs that have ended, by status", labels=("status",)
    )
    for status in sorted(ENDED_ITEM):
        items.add_metric((status,), totals[status])
    yield items
    num_open = totals["total"] - sum(totals[status] for status in ENDED_ITEM)
    yield GaugeMetricFamily("bros_items_open", "Items of all jobs that have not ended", value=num_open)


async def metrics(request: Request) -> Response:
    """Respond with all metrics that are available; `bros_up` shows which part of the service is not."""
    state = app_state(request)
    engine = totals = None
    try:
        client = await state.engine.client()
        engine = await client.stats()
    except EngineGone as error:
        logger.info("metrics without the engine: %s", error)
    try:
        totals = await state.read(jobs.total_counts)
    except ApiError as error:
        logger.info("metrics without the database: %s", error)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Snapshot(engine, totals))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


routes = [Route("/metrics", metrics, methods=["GET"])]
