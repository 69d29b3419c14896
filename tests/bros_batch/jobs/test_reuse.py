"""Answers that are computed once: by duplicates within a job, by later jobs, and by the parts of an item."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from sqlalchemy import text

from bros_batch.db import job_control
from bros_batch.db.connections import reading, writing
from bros_batch.db.rerun import rerun_rows
from bros_batch.db.row_retention import begin_removal, remove_rows
from bros_batch.db.states import ItemStatus
from bros_batch.jobs import reuse
from engine.wire.item_messages import Choice
from tests.bros_batch.world import World, batch_line

DECISIONS = "/v1/decisions"
WEIGHTS = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _engine_with_weights(world: World) -> None:
    world.engine.weights = WEIGHTS


def greedy(*contents: str, **body: Any) -> list[dict[str, Any]]:
    """A batch line per content, each with an id of its own."""
    body = {"temperature": 0, **body}
    return [batch_line(f"line-{number}", content, **body) for number, content in enumerate(contents)]


def compute(world: World, answer: str = "An answer.", **result: Any) -> int:
    """Prepare, answer and record once. Returns how many items the engine got."""
    world.prepare()
    taken = world.engine.take()
    world.engine.answer(taken, answer, **result)
    world.record()
    return len(taken)


def complete(world: World, job_id: str, answer: str = "An answer.") -> int:
    """Run a job to its end. Returns how many items the engine got."""
    computed = 0
    for _ in range(20):
        computed += compute(world, answer)
        if world.job(job_id).status == "finalizing":
            break
    world.finalize(job_id)
    assert world.check_counts(job_id).status == "completed"
    return computed


def contents(world: World, job_id: str) -> list[str]:
    return [json.loads(item.result or "")["choices"][0]["message"]["content"] for item in world.items(job_id)]


def test_duplicates_in_a_job_are_computed_once(world: World) -> None:
    lines = greedy(*(f"Document {number % 7}" for number in range(10)))
    job_id = world.running(lines)
    world.prepare()
    taken = world.engine.take()
    assert len(taken) == 7 and world.statuses(job_id) == ["queued"] * 7 + ["pending"] * 3
    assert world.prepare().queued == 0, "items that wait are left alone"
    world.engine.answer(taken, "Known.")
    assert world.record().prepare == ["sim"], "somebody waits for these answers"
    assert world.prepare().reused == 3 and not world.engine.take()

    world.finalize(job_id)
    job = world.check_counts(job_id)
    items = world.items(job_id)
    assert (job.status, job.succeeded, job.reused) == ("completed", 10, 3)
    assert [item.prompt_tokens for item in items[7:]] == [0] * 3
    assert job.reused_prompt_tokens == sum(item.prompt_tokens for item in items[:3])
    assert job.reused_output_tokens == 3 * items[0].output_tokens > 0
    assert [item.source_id for item in items[7:]] == [item.id for item in items[:3]]
    outputs = world.file_lines(job.output_file_id)
    assert [line["custom_id"] for line in outputs] == [line["custom_id"] for line in lines]
    assert len({line["response"]["request_id"] for line in outputs}) == 10
    assert contents(world, job_id) == ["Known."] * 10
    usage = outputs[7]["response"]["body"]["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] == items[0].prompt_tokens


def test_a_later_job_takes_the_answers_of_an_earlier_one_unless_it_is_fresh(world: World) -> None:
    first = world.running(greedy("one", "two", "three"))
    assert complete(world, first, "From the first.") == 3
    again = world.running(greedy("zero", "one", "two", "three"))
    assert complete(world, again, "From the second.") == 1
    assert contents(world, again) == ["From the second."] + ["From the first."] * 3
    fresh = world.running(greedy("one", "one"), fresh=True)
    assert complete(world, fresh, "From the third.") == 2
    last = world.running(greedy("one", "two"))
    assert complete(world, last) == 0
    assert contents(world, last) == ["From the third.", "From the first."]


def test_documents_with_the_same_prompt_are_duplicates_whatever_else_they_hold(world: World) -> None:
    documents = [{"id": number, "text": f"Text {number % 2}", "note": number} for number in range(6)]
    defaults = {"prompt": "Read: {text}", "temperature": 0}
    assert complete(world, world.running(documents, defaults=defaults)) == 2
    assert complete(world, world.running(documents, defaults={**defaults, "prompt": "See: {text}"})) == 2


@pytest.mark.parametrize(
    ("body", "computed"),
    [
        ({"temperature": 1.0}, 3),
        ({"temperature": 1.0, "seed": 5}, 1),
        ({"temperature": 0, "n": 2}, 1),
    ],
)
def test_only_answers_that_would_be_the_same_are_reused(
    world: World, body: dict[str, Any], computed: int
) -> None:
    job_id = world.running(greedy("same", "same", "same", **body))
    assert complete(world, job_id) == computed
    assert {len(json.loads(item.result or "")["choices"]) for item in world.items(job_id)} == {
        body.get("n", 1)
    }


def test_what_an_answer_depends_on_is_in_its_key(world: World) -> None:
    shape = {"type": "object", "properties": {"total": {"type": "number"}}}
    bodies: list[dict[str, Any]] = [
        {},
        {"max_tokens": 7},
        {"stop": ["x"]},
        {"logprobs": True},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": shape}}},
        {"seed": 1, "temperature": 0.5},
    ]
    lines = [batch_line(f"line-{n}", "same", **{"temperature": 0, **body}) for n, body in enumerate(bodies)]
    job_id = world.running(lines)
    world.prepare()
    assert len(world.engine.take()) == len(bodies) == len(world.items(job_id, ItemStatus.QUEUED))


def test_other_weights_compute_their_own_answers(world: World) -> None:
    assert complete(world, world.running(greedy("one"))) == 1
    world.engine.weights = "other"
    assert complete(world, world.running(greedy("one"))) == 1
    world.engine.weights = WEIGHTS
    assert complete(world, world.running(greedy("one"))) == 0, "the answers of both are kept"
    # What is computed by an engine that has been replaced meanwhile is not an answer of the new one.
    job_id = world.running(greedy("two"))
    world.prepare()
    world.engine.answer(world.engine.take(), weights="other")
    world.record()
    assert world.job(job_id).succeeded == 1
    assert complete(world, world.running(greedy("two"))) == 1


def test_weights_that_are_not_known_or_differ_reuse_nothing(world: World) -> None:
    world.engine.weights = ""
    assert complete(world, world.running(greedy("one", "one"))) == 2
    with reading(world.database) as connection:
        assert connection.scalar(text("SELECT count(*) FROM content_keys")) == 0


def test_when_an_item_fails_those_that_wait_compute_their_own(world: World) -> None:
    job_id = world.running(greedy(*["same"] * 4))
    assert compute(world, error_code="engine_error", error_message="It broke.", choices=[]) == 1
    assert world.statuses(job_id) == ["failed", "pending", "pending", "pending"]
    assert compute(world) == 3
    job = world.check_counts(job_id)
    assert (job.failed, job.succeeded, job.reused) == (1, 3, 0)


def test_what_waits_for_a_job_that_is_cancelled_or_paused_goes_on(world: World) -> None:
    first = world.running(greedy("same"))
    world.prepare()
    second = world.running(greedy("same", "same"))
    assert world.prepare().queued == 0
    world.cancel(first)
    assert complete(world, second) == 2, (
        "the entry of the cancelled job is still there, and one more is computed"
    )
    assert world.job(second).reused == 1

    third = world.running(greedy("other"))
    world.prepare()
    fourth = world.running(greedy("other"))
    assert world.prepare().queued == 0
    with writing(world.database) as connection:
        job_control.pause_job(connection, third)
    world.redis.flushall()
    world.sweep()
    assert complete(world, fourth) == 1


def test_what_waits_outlives_an_empty_redis_and_lost_items(world: World) -> None:
    job_id = world.running(greedy("same", "same", "other"))
    world.prepare()
    world.engine.take()
    world.redis.flushall()
    assert complete(world, job_id) == 2
    # A worker that dies between its claim and the stream leaves an item in hand that nobody computes.
    job_id = world.running(greedy("new", "new"))
    world.prepare()
    world.redis.delete(world.engine.key)
    assert world.prepare().queued == 0
    assert world.sweep(later_s=world.settings.lost_after_s + 1).lost == 1
    assert complete(world, job_id) == 1


def test_a_row_that_is_to_run_again_does_not_take_an_earlier_answer(world: World) -> None:
    job_id = world.running(greedy("same", "same", "else"))
    assert complete(world, job_id, "Old.") == 2
    for row, reused in ((1, 1), (2, 0)):
        with writing(world.database) as connection:
            rerun_rows(connection, job_id, [row])
        assert complete(world, job_id, f"New {row}.") == 1
        assert world.job(job_id).reused == reused
    assert contents(world, job_id) == ["New 1.", "New 2.", "Old."]
    later = world.running(greedy("same"))
    assert complete(world, later) == 0 and contents(world, later) == ["New 2."]


def test_at_most_so_many_items_wait_and_the_others_are_computed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reuse, "MAX_WAITING", 3)
    job_id = world.running(greedy(*["same"] * 10))
    world.prepare()
    assert world.statuses(job_id).count("pending") == 3
    assert complete(world, job_id) == 7


def test_the_answers_of_a_job_go_with_it(world: World) -> None:
    job_id = world.running(greedy("one"))
    assert complete(world, job_id) == 1
    with writing(world.database) as connection:
        assert begin_removal(connection, job_id) and remove_rows(connection, job_id, limit=100)
        assert connection.scalar(text("SELECT count(*) FROM content_keys")) == 0
    assert complete(world, world.running(greedy("one"))) == 1
    # And an answer whose item is gone is not used, even if it was left behind.
    with writing(world.database) as connection:
        connection.execute(text("DELETE FROM items"))
    assert complete(world, world.running(greedy("one"))) == 1


def decision_line(number: int, questions: Iterable[str]) -> dict[str, Any]:
    body = {
        "model": "sim",
        "input": f"Row {number}: a text about animals.",
        "questions": [{"type": "predicate", "instructions": each} for each in questions],
    }
    return {"custom_id": f"row-{number}", "method": "POST", "url": DECISIONS, "body": body}


def ask(world: World, job_id: str) -> tuple[int, list[list[float]]]:
    """Answer the questions of a job; question 1 has other odds than question 2. Returns the number of questions that
    were computed, and the probabilities."""
    computed = 0
    while world.job(job_id).status == "in_progress":
        world.prepare()
        for taken in world.engine.take():
            parts = taken.item.parts or [None]
            computed += len(parts)
            choices = []
            for part in parts:
                prompt = world.tokenizer.decode(taken.item.token_ids + (part.token_ids if part else []))
                number = int(prompt.split("Question: Is it ")[1].split("?")[0])
                choices.append(Choice([], "length", scores=[-0.1 * (number + 1), -2.0]))
            num_tokens = sum(
                len(taken.item.token_ids) + len(part.token_ids if part else ()) for part in parts
            )
            world.engine.answer([taken], choices=choices, prompt_tokens=num_tokens)
        world.record()
    answers = [json.loads(item.result or "")["answers"] for item in world.items(job_id)]
    return computed, [[answer["probability"] for answer in row] for row in answers]


def test_of_eight_questions_a_changed_one_is_computed_and_the_others_are_not(world: World) -> None:
    eight = [f"Is it {number}?" for number in range(8)]
    first = world.running([decision_line(row, eight) for row in range(5)], endpoint=DECISIONS)
    computed, before = ask(world, first)
    assert computed == 40
    changed = [*eight[:3], "Is it 11?", *eight[4:]]
    second = world.running([decision_line(row, changed) for row in range(5)], endpoint=DECISIONS)
    computed, after = ask(world, second)
    assert computed == 5
    for row, earlier in zip(after, before, strict=True):
        assert row[:3] == earlier[:3] and row[4:] == earlier[4:] and row[3] != earlier[3]

    world.finalize(second)
    job, old = world.check_counts(second), world.job(first)
    assert job.reused == 0, "each of its items has computed something"
    assert 7 * job.prompt_tokens == pytest.approx(job.reused_prompt_tokens, rel=0.05)
    assert job.prompt_tokens + job.reused_prompt_tokens == pytest.approx(old.prompt_tokens, rel=0.01)
    # In another order, and one of them alone, they are the same questions.
    third = world.running(
        [decision_line(1, [changed[3]]), decision_line(2, changed[::-1])], endpoint=DECISIONS
    )
    assert ask(world, third) == (0, [[after[1][3]], after[2][::-1]])
