"""Metrics: what Prometheus reads is what happened."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from bros_batch import store
from bros_batch.db import make_engine, writing
from bros_batch.models import jobs
from tests.web.serving import MODEL_NAME, Web

NAMES = {
    "bros_time_to_first_token_seconds", "bros_inter_token_latency_seconds", "bros_e2e_request_latency_seconds",
    "bros_request_queue_time_seconds", "bros_num_requests_running", "bros_num_requests_waiting",
    "bros_kv_cache_usage_ratio", "bros_prompt_tokens", "bros_generation_tokens", "bros_request_success",
    "bros_preemptions", "bros_truncated_tokens", "bros_iteration_seconds", "bros_items",
    "bros_prefix_cache_queries", "bros_prefix_cache_hits",
}  # fmt: skip


def scrape(web: Web) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
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
    assert [new - old for new, old in zip(after["rt"], before["rt"], strict=True)] == [15, 3, 3]
    assert after["be"] == before["be"]


def test_buckets_are_cumulative(web: Web) -> None:
    seen = scrape(web)
    buckets = sorted(
        (float(dict(labels)["le"]), value)
        for (name, labels), value in seen.items()
        if name == "bros_iteration_seconds_bucket"
    )
    values = [value for _, value in buckets]
    assert len(values) > 5
    assert values == sorted(values)
    assert values[-1] == seen["bros_iteration_seconds_count", ()]


def test_lines_are_counted(web: Web) -> None:
    before = scrape(web)
    database = make_engine(web.settings.resolved_database_url)
    with writing(database) as connection:
        job = store.create_job(connection, input_file_id="f", endpoint="/v1/completions", model="m")
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(total=10, succeeded=6, failed=1))
    database.dispose()
    after = scrape(web)

    def moved(name: str, *labels: tuple[str, str]) -> float:
        return after[name, labels] - before[name, labels]

    assert moved("bros_items_total", ("status", "succeeded")) == 6
    assert moved("bros_items_total", ("status", "failed")) == 1
    assert moved("bros_items_open") == 3
