"""Metrics in Prometheus format match what happened."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from bros_batch.db import jobs, tables
from bros_batch.db.connections import open_database, writing
from engine.runner.base import RunnerInfo
from engine.runner.simulated import SimulatedCost, SimulatedRunner
from tests.bros_batch.web.serving import MODEL_NAME, Web, serving, web_settings
from tests.engines import running_engine
from tests.services import wait_for

RESTORED = ("copy", "recompute", "prefix")

NAMES = {
    "bros_time_to_first_token_seconds", "bros_inter_token_latency_seconds", "bros_e2e_request_latency_seconds",
    "bros_request_queue_time_seconds", "bros_num_requests_running", "bros_num_requests_waiting",
    "bros_kv_cache_usage_ratio", "bros_prompt_tokens", "bros_generation_tokens", "bros_request_success",
    "bros_preemptions", "bros_truncated_tokens", "bros_step_seconds", "bros_items",
    "bros_prefix_cache_queries", "bros_prefix_cache_hits", "bros_restored_tokens", "bros_slo_attainment_ratio",
    "bros_cost_model_error_ratio", "bros_step_limit_seconds", "bros_step_cap_seconds", "bros_requests_rejected",
    "bros_slo_requests", "bros_slowdown_ratio", "bros_kv_free_blocks", "bros_saved_tokens",
    "bros_step_tokens",
}  # fmt: skip


Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(web: Web) -> Samples:
    with web.http() as http:
        answer = http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_names(web: Web) -> None:
    with web.http() as http:
        families = {family.name for family in text_string_to_metric_families(http.get("/metrics").text)}
    assert families >= NAMES


def test_requests_are_counted_in_their_lane(web: Web) -> None:
    def counts() -> dict[str, tuple[float, ...]]:
        seen = scrape(web)
        return {
            lane: (
                seen["bros_generation_tokens_total", (("lane", lane),)],
                seen["bros_step_tokens_total", (("lane", lane),)],
                seen["bros_time_to_first_token_seconds_count", (("lane", lane),)],
                seen.get(("bros_request_success_total", (("finished_reason", "length"), ("lane", lane))), 0),
            )
            for lane in ("rt", "be")
        }

    before = counts()
    with web.openai() as client:
        for _ in range(3):
            client.completions.create(
                model=MODEL_NAME, prompt="x", max_tokens=5, extra_body={"ignore_eos": True}
            )
    after = counts()
    assert [new - old for new, old in zip(after["rt"], before["rt"], strict=True)] == [15, 15, 3, 3]
    assert after["be"] == before["be"]


@pytest.fixture
def small(tmp_path: Path, text_model: Path) -> Iterator[Web]:
    """A server with an engine whose KV memory is full with two requests, and which has host memory to save KV in."""
    info = RunnerInfo(
        num_blocks=24, block_size=16, max_num_seqs=8, max_model_len=256, vocab_size=400, device="simulated",
        dtype="none", num_host_slots=256,
    )  # fmt: skip
    runner = SimulatedRunner(info, cost=SimulatedCost(step_s=0.002), wait=time.sleep)
    with (
        running_engine(tmp_path, runner, served_model_name=MODEL_NAME) as engine,
        serving(web_settings(tmp_path / "web", text_model, engine_url=engine.url)) as web,
    ):
        yield web


def test_preemptions_are_counted(small: Web) -> None:
    """Bulk fills the KV memory, chats preempt some of it, and bulk is restored."""

    def ask(number: int, lane: str, max_tokens: int) -> None:
        with small.openai() as client:
            extra = {"ignore_eos": True, "service_tier": "flex" if lane == "be" else "auto"}
            client.completions.create(
                model=MODEL_NAME, prompt=[number] * 70, max_tokens=max_tokens, extra_body=extra
            )

    with ThreadPoolExecutor(16) as threads:
        bulk = [threads.submit(ask, 10 + number, "be", 120) for number in range(4)]
        wait_for(lambda: scrape(small)["bros_kv_cache_usage_ratio", (("lane", "be"),)] > 0.8)
        chats = [threads.submit(ask, 100 + number, "rt", 60) for number in range(4)]
        rt_usage = ("bros_kv_cache_usage_ratio", (("lane", "rt"),))
        wait_for(lambda: scrape(small)[rt_usage] > 0.2)
        for each in (*bulk, *chats):
            each.result()
    ask(100, "rt", 1)  # its prompt is in the prefix cache, unless bulk needed the memory
    seen = scrape(small)
    lost = seen["bros_truncated_tokens_total", ()]
    assert seen["bros_preemptions_total", ()] >= 1
    assert lost >= seen["bros_preemptions_total", ()]
    restored = {how: seen["bros_restored_tokens_total", (("how", how),)] for how in RESTORED}
    assert sum(restored.values()) == lost, "everything is restored, by one method or another"
    assert restored["copy"] > 0
    assert seen["bros_saved_tokens_total", ()] >= restored["copy"]
    assert 0 <= seen["bros_host_kv_usage_ratio", ()] <= 1
    assert seen["bros_prefix_cache_queries_total", ()] >= 9 * 70
    assert 0 <= seen["bros_prefix_cache_hits_total", ()] <= seen["bros_prefix_cache_queries_total", ()]
    met, missed = (seen["bros_slo_requests_total", (("lane", "rt"), ("met", m))] for m in ("true", "false"))
    assert met + missed == 5
    assert seen["bros_slo_attainment_ratio", (("lane", "rt"),)] == met / 5
    slowdowns = {
        dict(labels)["quantile"]: value for (name, labels), value in seen.items() if "slowdown" in name
    }
    assert 0 <= slowdowns["0.5"] <= slowdowns["0.99"] and slowdowns["0.99"] > 0
    assert 0 < seen["bros_step_limit_seconds", ()] <= seen["bros_step_cap_seconds", ()] <= 0.25
    assert 0 < seen["bros_cost_model_error_ratio", ()] < 1
    assert seen["bros_kv_free_blocks", ()] == 24
    assert seen["bros_step_seconds_count", ()] > 60


def test_buckets_are_cumulative(web: Web) -> None:
    seen = scrape(web)
    buckets = sorted(
        (float(dict(labels)["le"]), value)
        for (name, labels), value in seen.items()
        if name == "bros_step_seconds_bucket"
    )
    values = [value for _, value in buckets]
    assert len(values) > 5
    assert values == sorted(values)
    assert values[-1] == seen["bros_step_seconds_count", ()]


def test_items_are_counted(web: Web) -> None:
    before = scrape(web)
    database = open_database(web.settings.resolved_database_url)
    with writing(database) as connection:
        job = jobs.create_job(connection, input_file_id="f", endpoint="/v1/completions", model="m")
        connection.execute(
            update(tables.jobs).where(tables.jobs.c.id == job.id).values(total=10, succeeded=6, failed=1)
        )
    database.dispose()
    after = scrape(web)

    def moved(name: str, *labels: tuple[str, str]) -> float:
        return after[name, labels] - before[name, labels]

    assert moved("bros_items_total", ("status", "succeeded")) == 6
    assert moved("bros_items_total", ("status", "failed")) == 1
    assert moved("bros_items_open") == 3
