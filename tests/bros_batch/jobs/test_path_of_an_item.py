"""From a line to its one result: ingest, prepare, record and finalize, with results that repeat or come late."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy.exc import DataError

from bros_batch.db import ended_items, item_results
from bros_batch.db.connections import reading
from bros_batch.db.states import WITHOUT_RESULT, ItemStatus
from bros_batch.jobs.record import CONSUMER
from bros_batch.jobs.task_run import Progress
from bros_batch.openai_api.batch_output import error_line, line_id, output_line
from engine.wire.redis_keys import RECORD_GROUP, RESULTS_KEY
from tests.bros_batch.world import World, batch_line, batch_lines


def test_every_line_gets_its_result_in_input_order(world: World) -> None:
    job_id = world.running(batch_lines(30))
    world.prepare()
    taken = world.engine.take()
    assert len(taken) == 30
    random.Random(3).shuffle(taken)
    for each in taken:
        world.engine.answer([each], f"Item {each.item.item_id}.")
    assert world.record().changed == 30
    assert world.job(job_id).status == "finalizing"
    assert world.finalize(job_id).progress is Progress.DONE

    job = world.check_counts(job_id)
    assert (job.status, job.succeeded, job.failed, job.error_file_id) == ("completed", 30, 0, None)
    lines = world.file_lines(job.output_file_id)
    items = world.items(job_id)
    assert [line["custom_id"] for line in lines] == [f"doc-{number}" for number in range(30)]
    for line, item in zip(lines, items, strict=True):
        assert set(line) == {"id", "custom_id", "response", "error"}
        assert line["id"] == line_id(item.id) and line["error"] is None
        response = line["response"]
        assert response["status_code"] == 200 and response["request_id"].startswith("req_")
        assert response["body"]["choices"][0]["message"]["content"] == f"Item {item.id}."
        assert response["body"]["usage"]["prompt_tokens"] == item.prompt_tokens
    assert world.queue_length() == 0 and world.redis.xlen(RESULTS_KEY) == 0


def test_documents_fill_the_prompt(world: World) -> None:
    documents = [{"id": 7, "text": "one"}, {"text": "two"}, {"custom_id": "c", "text": {"deep": [1]}}]
    defaults = {"prompt": "Read: {text}", "system": "Be brief.", "max_tokens": 5, "temperature": 0}
    job_id = world.running(documents, defaults=defaults)
    assert [item.custom_id for item in world.items(job_id)] == ["7", "2", "c"]
    world.prepare()
    taken = sorted(
        world.engine.take(), key=lambda each: each.item.item_id
    )  # rows that begin alike are queued together
    prompts = [world.tokenizer.decode(each.item.token_ids) for each in taken]
    assert ["Be brief." in prompt for prompt in prompts] == [True] * 3
    assert [prompt.split("Read: ")[1].split("\n")[0] for prompt in prompts] == ["one", "two", '{"deep": [1]}']
    assert {each.item.sampling.max_tokens for each in taken} == {5}
    assert {each.item.sampling.temperature for each in taken} == {0.0}
    world.engine.answer(taken)
    world.record()
    assert world.check_counts(job_id).succeeded == 3


def test_stop_strings_of_a_line_cut_its_result(world: World) -> None:
    job_id = world.running(
        [batch_line("a", stop=["END"], max_tokens=50), batch_line("b", n=2, max_tokens=50)]
    )
    world.prepare()
    world.engine.answer(world.engine.take(), "before END after")
    world.record()
    bodies = [json.loads(item.result or "") for item in world.items(job_id)]
    assert [choice["message"]["content"] for choice in bodies[0]["choices"]] == ["before "]
    assert [choice["message"]["content"] for choice in bodies[1]["choices"]] == ["before END after"] * 2


def test_a_repeated_result_changes_nothing(world: World) -> None:
    job_id = world.running(batch_lines(4))
    world.prepare()
    taken = world.engine.take()
    world.engine.answer(taken[:3], "first")
    world.record()
    before = world.check_counts(job_id)
    world.engine.answer(taken[:3], "second")
    world.engine.answer(taken[:3], error_code="engine_lost", error_message="late")
    assert world.record().changed == 0
    assert world.check_counts(job_id) == before
    assert "second" not in json.dumps([item.result for item in world.items(job_id)])
    # Twice in one group counts once, too.
    world.engine.answer([taken[3], taken[3]])
    assert world.record().changed == 1
    assert world.check_counts(job_id).succeeded == 4


def test_a_result_of_an_earlier_epoch_changes_nothing(world: World) -> None:
    job_id = world.running(batch_lines(1))
    world.prepare()
    early = world.engine.take()
    world.redis.delete(world.engine.key)  # the queued item is lost
    world.sweep(later_s=1000)
    assert world.statuses(job_id) == ["pending"]
    world.prepare()
    world.engine.answer(early, "late, while queued again")
    assert world.record().changed == 0
    assert world.statuses(job_id) == ["queued"]
    world.engine.answer(world.engine.take(), "right")
    assert world.record().changed == 1
    item = world.items(job_id)[0]
    assert (item.status, item.attempts, item.epoch) == ("succeeded", 1, 2)
    assert "right" in (item.result or "")


def test_a_late_result_counts_while_the_item_has_not_been_queued_again(world: World) -> None:
    job_id = world.running(batch_lines(2))
    world.prepare()
    late = world.engine.take()
    world.redis.delete(world.engine.key)
    assert world.sweep(later_s=1000).lost == 2
    assert world.statuses(job_id) == ["pending"] * 2
    world.engine.answer(late[:1], "late but right")
    world.engine.answer(late[:1], "a second time")
    assert world.record().changed == 1
    assert world.statuses(job_id) == ["succeeded", "pending"]
    assert "late but right" in (world.items(job_id)[0].result or "")
    assert world.run_through(job_id).succeeded == 2
    world.check_counts(job_id)


def test_a_line_that_fails_in_the_engine_fails_alone(world: World) -> None:
    job_id = world.running(batch_lines(3))
    world.prepare()
    taken = world.engine.take()
    world.engine.answer(
        taken[:1], choices=[], error_code="context_length_exceeded", error_message="too\0 long"
    )
    world.engine.answer(taken[1:])
    world.record()
    world.finalize(job_id)
    job = world.check_counts(job_id)
    assert (job.status, job.succeeded, job.failed) == ("completed", 2, 1)
    (line,) = world.file_lines(job.error_file_id)
    assert line["custom_id"] == "doc-0" and line["response"] is None
    assert line["error"] == {"code": "context_length_exceeded", "message": "too\\0 long"}


def test_lines_that_cannot_be_prepared_fail_alone(world: World) -> None:
    documents = [{"text": "short"}, {"text": "word " * 2000}, {"title": "no text"}]
    job_id = world.running(documents, defaults={"prompt": "Read {text}", "max_tokens": 8})
    assert world.prepare().failed == 2
    items = world.items(job_id)
    assert [item.status for item in items] == ["queued", "failed", "failed"]
    assert [item.error_code for item in items[1:]] == ["context_length_exceeded", "invalid_request"]
    assert "Row 3" in (items[2].error_message or "") and "'text'" in (items[2].error_message or "")
    job = world.run_through(job_id)
    assert (job.status, job.succeeded, job.failed) == ("completed", 1, 2)


def test_a_job_whose_last_line_fails_in_prepare_ends(world: World) -> None:
    job_id = world.running([{"title": "no text"}], defaults={"prompt": "Read {text}"})
    assert list(world.prepare().finalize) == [job_id]
    world.finalize(job_id)
    job = world.check_counts(job_id)
    assert (job.status, job.failed, job.output_file_id) == ("completed", 1, None)
    assert len(world.file_lines(job.error_file_id)) == 1


@pytest.mark.parametrize("options", [{"default_max_tokens": 1000}])
def test_default_max_tokens_is_cut_to_the_room_left(world: World) -> None:
    job_id = world.running([batch_line("a", "word " * 60)])
    world.prepare()
    (taken,) = world.engine.take()
    assert taken.item.sampling.max_tokens == world.tokenizer.max_model_len - len(taken.item.token_ids)
    assert job_id == taken.item.job_id


@pytest.mark.parametrize("options", [{"queue_max_items": 10}])
def test_prepare_stops_at_the_limit_and_continues_later(world: World) -> None:
    job_id = world.running(batch_lines(25))
    assert world.prepare().queued == 10
    assert world.queue_length() == 10
    assert world.prepare().queued == 0
    first = world.engine.take()
    assert [each.item.item_id for each in first] == [item.id for item in world.items(job_id)[:10]]
    world.engine.answer(first)
    world.record()
    assert world.prepare().queued == 10


def test_prepare_returns_unused_items_when_its_time_is_up(world: World) -> None:
    job_id = world.running(batch_lines(20))
    done = world.prepare(until_s=time.monotonic())
    assert done.progress is Progress.MORE and done.queued == 1
    items = world.items(job_id)
    assert [item.status for item in items] == ["queued"] + ["pending"] * 19
    assert {item.attempts for item in items} == {0}
    assert world.run_through(job_id).status == "completed"


def test_urgent_jobs_go_first(world: World) -> None:
    now_s = time.time()
    jobs = {
        "old": world.running(batch_lines(1), now_s=now_s - 100),
        "new": world.running(batch_lines(1), now_s=now_s),
        "late deadline": world.running(batch_lines(1), deadline_at=now_s + 9000),
        "near deadline": world.running(batch_lines(1), deadline_at=now_s + 5000),
        "important": world.running(batch_lines(1), priority=5),
    }
    names = {job_id: name for name, job_id in jobs.items()}
    world.prepare()
    order = [names[each.item.job_id] for each in world.engine.take()]
    assert order == ["important", "near deadline", "late deadline", "old", "new"]


def test_concurrent_preparers_never_enqueue_an_item_twice(world: World) -> None:
    job_id = world.running(batch_lines(600))
    threads = [threading.Thread(target=world.prepare) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    taken = world.engine.take()
    assert len(taken) == 600
    assert len({each.item.item_id for each in taken}) == 600
    assert {item.epoch for item in world.items(job_id)} == {1}


def test_concurrent_recorders_count_each_result_once(world: World) -> None:
    job_id = world.running(batch_lines(400))
    world.prepare()
    world.engine.answer(world.engine.take())
    threads = [threading.Thread(target=world.record) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    job = world.check_counts(job_id)
    assert (job.succeeded, job.status) == (400, "finalizing")


def test_partial_results_are_available_at_any_time(world: World) -> None:
    job_id = world.running(batch_lines(5))
    world.prepare()
    taken = world.engine.take()
    world.engine.answer([taken[3], taken[1]])
    world.engine.answer([taken[2]], choices=[], error_code="invalid_request", error_message="bad")
    world.record()
    with reading(world.database) as connection:
        with_result = ended_items.ended_page(connection, job_id, 0, 10, ItemStatus.SUCCEEDED)
        without = ended_items.ended_page(connection, job_id, 0, 10, *WITHOUT_RESULT)
        assert ended_items.count_error_codes(connection, job_id) == {"invalid_request": 1}
    results = [output_line(item.id, item.epoch, item.custom_id, item.result) for item in with_result]
    errors = [error_line(item.id, item.custom_id, item.error_code, item.error_message) for item in without]
    assert [json.loads(line)["custom_id"] for line in results] == ["doc-1", "doc-3"]
    assert [json.loads(line)["custom_id"] for line in errors] == ["doc-2"]


def test_results_read_by_a_dead_recorder_are_recorded_by_the_next(world: World) -> None:
    job_id = world.running(batch_lines(5))
    world.prepare()
    world.engine.answer(world.engine.take())
    world.redis.xgroup_create(RESULTS_KEY, RECORD_GROUP, id="0", mkstream=True)
    world.redis.xreadgroup(RECORD_GROUP, CONSUMER, {RESULTS_KEY: ">"}, count=3)  # and then it died
    assert world.record().changed == 5
    assert world.check_counts(job_id).status == "finalizing"
    assert world.queue_length() == 0


def test_an_unreadable_result_blocks_nothing(world: World) -> None:
    job_id = world.running(batch_lines(3))
    world.prepare()
    taken = world.engine.take()
    entry = {"p": b"\xc1garbage", "s": world.engine.key, "x": taken[0].entry_id}
    world.redis.xadd(RESULTS_KEY, entry)
    world.redis.xadd(RESULTS_KEY, {"unrelated": "1"})
    world.engine.answer(taken[1:])
    assert world.record().changed == 2
    assert world.redis.xlen(RESULTS_KEY) == 0
    # Its item returns to pending, runs again and ends.
    assert world.sweep(later_s=1000).lost == 1
    assert world.statuses(job_id) == ["pending", "succeeded", "succeeded"]
    assert world.run_through(job_id).succeeded == 3


@pytest.mark.parametrize(
    "numbers",
    [{"prompt_tokens": 2**40}, {"prompt_tokens": 2**63}, {"prompt_tokens": -1}, {"cached_tokens": 2**31}],
)
def test_a_result_with_numbers_out_of_range_blocks_nothing(world: World, numbers: dict[str, int]) -> None:
    job_id = world.running(batch_lines(3))
    world.prepare()
    taken = world.engine.take()
    world.engine.answer(taken[:1], **numbers)
    world.engine.answer(taken[1:])
    assert world.record().changed == 2
    assert world.redis.xlen(RESULTS_KEY) == 0
    assert world.sweep(later_s=1000).lost == 1, "its item runs again"
    assert world.run_through(job_id).succeeded == 3


def test_a_result_that_the_database_rejects_blocks_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = world.running(batch_lines(5))
    world.prepare()
    taken = world.engine.take()
    world.engine.answer(taken)
    real, poison = item_results.finish_items, taken[2].item.item_id

    def finish(
        connection: Any, finished: Sequence[item_results.FinishedItem], now_s: float
    ) -> item_results.FinishResult:
        if poison in [item.id for item in finished]:
            raise DataError("UPDATE items", None, ValueError("no such number"))
        return real(connection, finished, now_s)

    monkeypatch.setattr(item_results, "finish_items", finish)
    assert world.record().changed == 4
    assert world.redis.xlen(RESULTS_KEY) == 0
    assert world.check_counts(job_id).succeeded == 4
